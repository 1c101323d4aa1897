"""When a run counts as diverged, by its losses alone; and what is no divergence."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable

import pytest

from trainer.divergence import DivergenceConfig, DivergenceWatch


def watched(losses: Iterable[float], config: DivergenceConfig | None = None) -> tuple[DivergenceWatch, int | None]:
    """A watch that has seen `losses`, and the first step after which it calls them divergence."""
    watch = DivergenceWatch(config or DivergenceConfig())
    for step, loss in enumerate(losses):
        watch.add(step, loss, withheld=not math.isfinite(loss))
        if watch.verdict(final=False) is not None:
            return watch, step
    return watch, None


def test_withheld_steps_in_a_row_are_divergence_since_the_first_of_them() -> None:
    watch, at = watched([0.5] * 7 + [math.nan] * 9)
    assert at == 11
    found = watch.verdict(final=False)
    assert found is not None
    assert found.since == 7
    assert found.reason == "the last 5 steps were not finite"


@pytest.mark.parametrize(("every", "at"), [(5, None), (4, 99)])
def test_withheld_steps_now_and_then_are_divergence_beyond_a_share_of_100(every: int, at: int | None) -> None:
    losses = [math.inf if step % every == 0 else 0.5 for step in range(400)]
    assert watched(losses)[1] == at


def test_the_last_step_of_all_may_not_be_withheld() -> None:
    watch, at = watched([0.5, 0.5, math.nan])
    assert at is None
    assert watch.verdict(final=True) is not None


def test_a_loss_that_leaves_and_stays_away_is_divergence() -> None:
    watch, at = watched([0.69] + [0.5] * 120 + [1e6] * 100)
    assert at == 121 + 37
    found = watch.verdict(final=False)
    assert found is not None
    assert found.since == 121
    assert found.reason == "the loss of 38 of the last 50 steps was above 2.08"


def test_a_rate_far_too_high_from_the_first_step_on_is_seen() -> None:
    assert watched([0.7] + [1e6] * 60)[1] == 38
    assert watched([0.7] + [9.0, 0.5, 9.0, 9.0, 9.0] * 20)[1] is not None, "leaping about"


@pytest.mark.parametrize(
    "losses",
    [
        [0.7] + [0.5] * 100 + ([1e9] * 37 + [0.5] * 13) * 5,
        [20.0 * 0.99**step for step in range(600)],
        [0.02] * 300 + [1.9] * 300,
        [0.69 + 0.1 * random.Random(0).random() for _ in range(500)],
    ],
    ids=["spikes", "begins high", "rare labels that come", "learns nothing"],
)
def test_none_of_these_is_divergence(losses: list[float]) -> None:
    assert watched(losses)[1] is None


def test_the_loss_is_not_judged_where_that_is_switched_off() -> None:
    assert watched([0.7] + [1e6] * 500, DivergenceConfig(loss_factor=0.0))[1] is None


def test_suspicion_ends_with_the_first_healthy_step() -> None:
    watch, _ = watched([0.5] * 20 + [9.0])
    assert watch.suspicious
    watch.add(21, 0.5, withheld=False)
    assert not watch.suspicious


def test_many_high_losses_leave_a_suspicion_for_a_while() -> None:
    watch, _ = watched([0.5] * 20 + [9.0] * 6 + [0.5])
    assert watch.suspicious
    for step in range(50):
        watch.add(27 + step, 0.5, withheld=False)
    assert not watch.suspicious


@pytest.mark.parametrize("cut", [1, 60, 101, 140])
def test_a_watch_that_is_restored_goes_on_alike(cut: int) -> None:
    draw = random.Random(1)
    losses = (
        [0.7] + [0.5 + draw.random() / 10 for _ in range(100)] + [draw.choice([3.0, math.nan, 5.0]) for _ in range(60)]
    )
    config = DivergenceConfig(nonfinite_steps=50, nonfinite_share=1.0)
    whole = DivergenceWatch(config)
    second = DivergenceWatch(config)
    for step, loss in enumerate(losses):
        whole.add(step, loss, withheld=math.isnan(loss))
        if step == cut:
            second.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        elif step > cut:
            second.add(step, loss, withheld=math.isnan(loss))
            assert second.verdict(final=False) == whole.verdict(final=False)
    assert whole.verdict(final=False) is not None
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nonfinite_steps": 0}, r"divergence\.nonfinite_steps is 0"),
        ({"nonfinite_share": 0.0}, r"divergence\.nonfinite_share is 0"),
        ({"loss_factor": 1.0}, r"divergence\.loss_factor is 1"),
        ({"loss_factor": math.nan}, r"divergence\.loss_factor is nan"),
        ({"rollbacks": -1}, r"divergence\.rollbacks is -1"),
    ],
)
def test_settings_are_checked(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DivergenceConfig(**values)  # pyright: ignore[reportArgumentType]


def test_the_bar_rises_with_the_weights_of_the_loss() -> None:
    """And stays where it is when the state is put back."""
    watch = DivergenceWatch(DivergenceConfig(), largest_weight=100.0)
    watch.add(0, 0.5, withheld=False)
    assert watch.bar == pytest.approx(DivergenceConfig().loss_factor * 100 * math.log(2))
    watch.load_state_dict(watch.state_dict())
    assert watch.bar == pytest.approx(DivergenceConfig().loss_factor * 100 * math.log(2))
