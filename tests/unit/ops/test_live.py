"""The live page's status: bounded memory, JSON without NaN, honest predictions of what is left."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest

from ops.live import (
    ALPHAS,
    BIN_ESTIMATES,
    BINS,
    LEAST_ESTIMATES,
    MESSAGES,
    POINTS,
    AlphaFactor,
    Curve,
    LiveStatus,
    alpha_bins,
    measuring_gaps,
)
from ops.ranks import RankTimes
from ops.step_clock import StepClock


class FakeTime:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def status(**changes: object) -> LiveStatus:
    return LiveStatus(StepClock(), run="runs/one", monotonic=FakeTime(), **changes)  # pyright: ignore[reportArgumentType]


def take_step(live: LiveStatus, step: int, *, loss: float | None = 0.5, seconds: float = 0.5) -> None:
    live.step(step, epoch=0, rows=100, loss=loss, learning_rate=1e-3, seconds=seconds)


@pytest.mark.parametrize("steps", [1, POINTS - 1, POINTS, 10 * POINTS + 7])
def test_a_curve_keeps_its_mean_and_its_size(steps: int) -> None:
    curve = Curve()
    for step in range(steps):
        curve.add(step, float(step))
    points = curve.points()
    assert 0 < len(points) <= POINTS
    stride = points[0][0] + 1
    for index, (step, value) in enumerate(points):
        assert step == (index + 1) * stride - 1
        assert value == step - (stride - 1) / 2


def test_an_empty_run_is_a_valid_status() -> None:
    snapshot = status().snapshot()
    assert snapshot["run"] == "runs/one"
    assert snapshot["state"] == "starting"
    assert snapshot["progress"] is None
    assert snapshot["rows_per_second"] is None
    json.dumps(snapshot, allow_nan=False)


def test_progress_and_time_left_by_steps() -> None:
    live = status(total_steps=10)
    for step in range(4):
        take_step(live, step, seconds=0.5)
    snapshot = live.snapshot()
    assert snapshot["step"] == 4
    assert snapshot["rows"] == 400
    assert snapshot["progress"] == 0.4
    assert snapshot["seconds_left"] == 3.0
    assert snapshot["rows_per_second"] == 200


def test_the_nearer_budget_decides() -> None:
    live = status(total_steps=100, budget_seconds=4.0)
    take_step(live, 0, seconds=1.0)
    snapshot = live.snapshot()
    assert snapshot["progress"] == 0.25
    assert snapshot["seconds_left"] == 3.0


def test_a_resumed_run_brings_the_time_it_trained_before() -> None:
    live = status(budget_seconds=10.0)
    live.step(50, epoch=0, rows=1, loss=None, learning_rate=1.0, seconds=0.5, training_seconds=7.5)
    assert live.snapshot()["progress"] == 0.75


def test_a_resumed_run_shows_where_it_stands_before_its_first_step() -> None:
    live = status(total_steps=100)
    live.resume(step=40, epoch=1, rows=4000, training_seconds=20.0)
    snapshot = live.snapshot()
    assert (snapshot["step"], snapshot["rows"], snapshot["progress"]) == (40, 4000, 0.4)
    take_step(live, 40)
    assert live.snapshot()["rows"] == 4100


def test_nothing_nonfinite_reaches_json() -> None:
    live = status()
    take_step(live, 0, loss=math.nan)
    take_step(live, 1, loss=math.inf)
    live.estimate(1, outcome="nonfinite", relative=math.nan, absolute=math.nan)
    live.evaluation(1, "validation", loss=math.nan, auc=math.nan)
    snapshot = live.snapshot()
    assert snapshot["loss"] is None
    assert [value for _, value in snapshot["loss_curve"]] == [None, None]
    assert snapshot["evaluations"]["validation"]["loss"] is None
    json.dumps(snapshot, allow_nan=False)


def estimate(live: LiveStatus, step: int, absolute: float, *, count: int, factor: float | None = 2.0) -> None:
    """An estimate whose curvature is 1, so that the rate it suggests is minus its slope."""
    live.estimate(
        step,
        outcome="ok",
        relative=absolute,
        absolute=absolute,
        per_rate=(-absolute, 1.0),
        factor=AlphaFactor(estimates=count, factor=factor, standard_error=0.5),
    )


def test_alpha_is_one_pooled_factor_with_its_margin_and_the_spread() -> None:
    live = status()
    for step in range(12):
        estimate(live, step, float(step), count=step + 1)
    live.estimate(12, outcome="dropped", relative=None, absolute=None)
    snapshot = live.snapshot()
    assert snapshot["alpha"] == {
        "estimates": 12,
        "least": 10,
        "factor": 2.0,
        "margin": 0.98,
        "lower": 2.75,
        "upper": 8.25,
    }
    [one] = snapshot["alpha_bins"]
    assert one == {"step": 6, "pooled": 5.5, "lower": 2.75, "upper": 8.25, "after_gap": False}
    assert snapshot["outcomes"] == {"ok": 12, "dropped": 1}


def test_nine_estimates_show_no_number_and_say_how_many_there_are() -> None:
    live = status()
    for step in range(LEAST_ESTIMATES - 1):
        estimate(live, step, 1.0, count=step + 1, factor=None)
    snapshot = live.snapshot()
    assert snapshot["alpha"] == {
        "estimates": 9,
        "least": 10,
        "factor": None,
        "margin": None,
        "lower": None,
        "upper": None,
    }
    assert snapshot["alpha_bins"] == []


def test_estimates_stay_bounded_and_evenly_thinned() -> None:
    live = status()
    for step in range(3 * ALPHAS):
        estimate(live, step, float(step), count=200)
    bins = live.snapshot()["alpha_bins"]
    assert 0 < len(bins) <= BINS
    assert bins[0]["pooled"] < 0.05 * 3 * ALPHAS
    assert bins[-1]["pooled"] > 0.95 * 3 * ALPHAS
    assert all(one["lower"] < one["pooled"] < one["upper"] for one in bins)


def test_bins_hold_enough_estimates_for_their_quartiles() -> None:
    alphas = [(step, float(step), -1.0, 1.0) for step in range(5 * BIN_ESTIMATES + 3)]
    assert len(alpha_bins(alphas)) == 5


def test_a_bin_pools_by_the_ratio_of_averages() -> None:
    alphas = [
        (step, -slope / curvature, slope, curvature) for step, (slope, curvature) in enumerate([(-1, 4), (-9, 1)] * 5)
    ]
    assert [one["pooled"] for one in alpha_bins(alphas)] == [pytest.approx((5 * 1 + 5 * 9) / (5 * 4 + 5 * 1))]


@pytest.mark.parametrize(
    ("steps", "gaps"),
    [
        ([], []),
        ([3], []),
        ([0, 1000], []),
        (range(0, 1000, 10), []),
        ([*range(0, 300, 10), *range(700, 1000, 10)], [30]),
        ([*range(0, 300, 10), 320, *range(340, 1000, 10)], []),
        ([start + i for start in range(0, 1000, 100) for i in range(10)], []),
        ([start + i for start in (0, 300, 600, 900) for i in range(200)], [200, 400, 600]),
        ([start + i for start in (0, 100, 200, 300, 1500, 1600) for i in range(10)], [40]),
    ],
)
def test_a_pause_in_measuring_is_a_gap_and_the_usual_one_between_bursts_is_not(
    steps: Sequence[int], gaps: list[int]
) -> None:
    assert measuring_gaps(steps) == gaps


def test_a_gap_is_between_two_bins_and_inside_none() -> None:
    steps = [*range(0, 300, 10), *range(700, 1000, 10)]
    bins = alpha_bins([(step, 1.0 if step < 500 else 2.0, -1.0 if step < 500 else -2.0, 1.0) for step in steps])
    assert [one["pooled"] for one in bins] == [1.0, 1.0, 2.0, 2.0]
    assert [one["after_gap"] for one in bins] == [False, False, True, False]


def test_the_first_step_says_nothing_of_the_speed() -> None:
    live = status(total_steps=10)
    take_step(live, 0, seconds=60.0)
    assert live.snapshot()["seconds_left"] is None
    take_step(live, 1, seconds=0.5)
    snapshot = live.snapshot()
    assert snapshot["seconds_left"] == 4.0
    assert snapshot["rows_per_second"] == 200


def test_the_best_evaluation_is_remembered() -> None:
    live = status()
    for step, loss in enumerate([0.6, 0.5, 0.55]):
        live.evaluation(step, "validation", loss=loss, auc=0.7)
    assert live.snapshot()["evaluations"]["validation"] == {"step": 2, "loss": 0.55, "auc": 0.7, "best": 0.5}


def test_the_latest_messages_come_first() -> None:
    live = status()
    for step in range(MESSAGES + 3):
        live.message(step, f"message {step}")
    messages = live.snapshot()["messages"]
    assert len(messages) == MESSAGES
    assert messages[0] == {"step": MESSAGES + 2, "text": f"message {MESSAGES + 2}"}


def test_until_its_first_step_ends_a_run_prepares() -> None:
    live = status(total_steps=10)
    live.state("training")
    assert live.snapshot()["state"] == "preparing"
    take_step(live, 0)
    assert live.snapshot()["state"] == "training"


def test_a_long_wait_for_rows_is_a_state_of_its_own_and_no_other_state_is_overruled() -> None:
    now = [0]
    live = LiveStatus(clock := StepClock(nanosecond_time=lambda: now[0]), run="runs/one")
    live.state("training")
    take_step(live, 0)
    with clock.phase("data_wait"):
        now[0] += 9 * 10**9
        assert live.snapshot()["state"] == "training"
        now[0] += 1 * 10**9
        assert live.snapshot()["state"] == "waiting for data"
        assert live.snapshot()["waiting_seconds"] == 10
        live.state("waiting for new rows")
        assert live.snapshot()["state"] == "waiting for new rows"
    live.state("training")
    assert live.snapshot()["state"] == "training"


def test_time_left_counts_evaluations_as_they_were() -> None:
    time = FakeTime()
    live = LiveStatus(StepClock(), run="runs/one", total_steps=100, budget_seconds=1e6, monotonic=time)
    for step in range(21):
        time.now += 0.5
        take_step(live, step, seconds=0.5)
        if step % 10 == 0 and step:
            time.now += 10.0
    # After the first step twenty of half a second, and two evaluations of ten seconds: three times as long.
    assert live.seconds_left() == pytest.approx(79 * 0.5 * 3)
    assert live.snapshot()["seconds_left"] == live.seconds_left()


def test_every_evaluation_is_drawn_and_a_loss_that_is_none_is_a_gap() -> None:
    live = status()
    for step, loss in ((10, 0.6), (20, math.nan), (30, 0.5)):
        live.evaluation(step, "validation", loss=loss, auc=None)
    live.evaluation(30, "test", loss=0.55, auc=None)
    curves = live.snapshot()["evaluation_curves"]
    assert curves == {"validation": [(10, 0.6), (20, None), (30, 0.5)], "test": [(30, 0.55)]}


def test_ranks_are_shown_once_there_are_several() -> None:
    live = status()
    assert live.snapshot()["ranks"] is None
    live.ranks(RankTimes(steps=50, seconds={"forward": [6.0, 2.0], "communication": [4.0, 8.0]}))
    told = json.loads(json.dumps(live.snapshot(), allow_nan=False))["ranks"]
    assert (told["ranks"], told["steps"], told["slowest"]) == (2, 50, 0)
    assert told["phases"] == {"forward": [2.0, 4.0, 6.0], "communication": [4.0, 6.0, 8.0]}
    assert told["waited_share"] == pytest.approx(0.4)
    assert told["sentence"].startswith("rank 0 of 2 is the slowest")
