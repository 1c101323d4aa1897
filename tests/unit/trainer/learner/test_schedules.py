"""Schedules against AlgoPerf's shape: linear from nearly 0, then cosine to 0."""

from __future__ import annotations

import math

import pytest

from trainer.learner.schedules import ScheduleConfig, scheduled_rate


def rates(name: str, total: int, **settings: float) -> list[float]:
    config = ScheduleConfig(name=name, **settings)  # pyright: ignore[reportArgumentType]
    return [scheduled_rate(config, step=step, total_steps=total, peak=2.0) for step in range(total + 3)]


def test_warmup_cosine_rises_linearly_and_falls_as_a_cosine_to_zero() -> None:
    values = rates("warmup_cosine", 1000, warmup_fraction=0.02)
    assert 0.0 < values[0] < 1e-9
    assert values[:21] == pytest.approx([0.1 * step for step in range(21)], abs=1e-9)
    assert values[20] == max(values) == 2.0
    assert values[20 + 490] == pytest.approx(1.0)
    assert values[20 + 245] == pytest.approx(1.0 + math.cos(math.pi / 4))
    assert values[1000] == values[1002] == 0.0
    assert all(value > 0.0 for value in values[:1000])


def test_the_other_shapes() -> None:
    assert rates("constant", 5) == [2.0] * 8
    assert rates("warmup_constant", 10, warmup_fraction=0.3)[:5] == pytest.approx(
        [0.0, 2 / 3, 4 / 3, 2.0, 2.0], abs=1e-9
    )
    assert rates("linear", 4) == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0, 0.0, 0.0])
    linear = rates("warmup_linear", 4, warmup_fraction=0.5)
    assert linear == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0, 0.0, 0.0], abs=1e-9)
    assert rates("cosine", 4)[0] == 2.0
    assert rates("cosine", 4)[2] == pytest.approx(1.0)


def test_its_own_length_wins_over_the_budget() -> None:
    config = ScheduleConfig(name="linear", steps=10)
    assert scheduled_rate(config, step=5, total_steps=1000, peak=1.0) == pytest.approx(0.5)
    assert scheduled_rate(config, step=5, total_steps=None, peak=1.0) == pytest.approx(0.5)


def test_a_schedule_of_one_step_is_defined() -> None:
    assert [scheduled_rate(ScheduleConfig(), step=step, total_steps=1, peak=1.0) for step in (0, 1)] == [1.0, 0.0]
    assert scheduled_rate(ScheduleConfig(warmup_fraction=1.0), step=3, total_steps=3, peak=1.0) == 1.0


def test_no_length_is_refused_only_where_one_is_needed() -> None:
    assert scheduled_rate(ScheduleConfig(name="constant"), step=9, total_steps=None, peak=0.5) == 0.5
    with pytest.raises(ValueError, match=r"'linear' needs its length.*schedule.steps"):
        scheduled_rate(ScheduleConfig(name="linear"), step=9, total_steps=None, peak=0.5)


@pytest.mark.parametrize("values", [{"warmup_fraction": -0.1}, {"warmup_fraction": 1.1}, {"steps": 0}])
def test_values_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=f"schedule.{next(iter(values))} is"):
        ScheduleConfig(**values)
