"""Which rank the others wait for, and why, of made-up times; what is exported of it."""

from __future__ import annotations

import math

import pytest

from ops.metrics import Metrics
from ops.ranks import RankTimes
from ops.series import PREFIX, SENT_FOR
from ops.step_clock import PHASES

SLOW_READER = RankTimes(
    steps=50,
    seconds={
        "data_wait": [0.0, 0.0, 4.0],
        "forward": [3.0, 3.5, 3.0],
        "communication": [7.0, 6.5, 3.0],
    },
)
"""Ten seconds, of which rank 2 waits four for its rows, and the others meanwhile for it."""


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(f"{PREFIX}_{name}", labels)
    assert found is not None, name
    return found


def test_the_slowest_rank_is_the_one_that_the_others_wait_for() -> None:
    assert SLOW_READER.slowest == 2
    assert SLOW_READER.longest_phase == "data_wait"
    assert SLOW_READER.waited_seconds == pytest.approx(6.75 - 3.0)
    assert SLOW_READER.waited_share == pytest.approx(0.375)
    assert "rank 2 of 3 is the slowest: the others wait for it 38 % of the time" in str(SLOW_READER)
    assert str(SLOW_READER).endswith("data wait")


def test_minimum_mean_and_maximum_are_over_ranks_and_the_means_sum_to_the_stretch() -> None:
    assert SLOW_READER.minimum == {"data_wait": 0.0, "forward": 3.0, "communication": 3.0}
    assert SLOW_READER.maximum == {"data_wait": 4.0, "forward": 3.5, "communication": 7.0}
    assert sum(SLOW_READER.mean.values()) == pytest.approx(10.0)
    assert SLOW_READER.of_slowest == {"data_wait": 4.0, "forward": 3.0, "communication": 3.0}


def test_of_ranks_that_are_alike_none_is_waited_for() -> None:
    alike = RankTimes(steps=1, seconds={"forward": [3.0, 3.0], "communication": [1.0, 1.0]})
    assert (alike.slowest, alike.waited_seconds, alike.waited_share) == (0, 0.0, 0.0)


def test_two_stretches_add_up_also_where_a_phase_is_in_one_alone() -> None:
    later = RankTimes(steps=10, seconds={"communication": [1.0, 2.0, 0.5], "evaluation": [1.0, 1.0, 1.0]})
    both = SLOW_READER + later
    assert both.steps == 60
    assert both.seconds == {
        "data_wait": [0.0, 0.0, 4.0],
        "forward": [3.0, 3.5, 3.0],
        "communication": [8.0, 8.5, 3.5],
        "evaluation": [1.0, 1.0, 1.0],
    }


def test_ranks_are_unknown_on_one_and_told_of_several() -> None:
    metrics = Metrics()
    assert math.isnan(value(metrics, "slowest_rank"))
    assert {math.isnan(value(metrics, "rank_phase_max_seconds", phase=phase)) for phase in PHASES} == {True}
    assert {value(metrics, "sent_bytes_total", purpose=purpose) for purpose in SENT_FOR} == {0.0}
    metrics.ranks.times(SLOW_READER)
    metrics.ranks.sent({"ids": 100.0})
    metrics.ranks.sent({"ids": 20.0, "rows": 7.0})
    assert value(metrics, "slowest_rank") == 2
    told = [value(metrics, f"rank_phase_{name}_seconds", phase="data_wait") for name in ("min", "mean", "max")]
    assert told == [0.0, pytest.approx(4 / 3), 4.0]
    assert value(metrics, "slowest_rank_phase_seconds", phase="communication") == 3.0
    assert (value(metrics, "sent_bytes_total", purpose="ids"), value(metrics, "sent_bytes_total", purpose="rows")) == (
        120.0,
        7.0,
    )


def test_a_purpose_that_is_not_exported_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="gossip"):
        Metrics().ranks.sent({"gossip": 1.0})
