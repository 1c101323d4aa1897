"""The live page's status: bounded memory, JSON without NaN, honest predictions of what is left."""

from __future__ import annotations

import json
import math

import pytest

from ops.live import ALPHAS, MESSAGES, POINTS, WINDOW_ESTIMATES, WINDOWS, Curve, LiveStatus, alpha_windows
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


def test_windows_of_estimates_show_median_and_quartiles() -> None:
    live = status()
    for step in range(5):
        live.estimate(step, outcome="ok", relative=2.0, absolute=float(step))
    live.estimate(9, outcome="dropped", relative=None, absolute=None)
    snapshot = live.snapshot()
    assert snapshot["alpha_windows"] == [{"step": 2, "median": 2.0, "lower": 1.0, "upper": 3.0}]
    assert snapshot["alpha_relative_median"] == 2.0
    assert snapshot["outcomes"] == {"ok": 5, "dropped": 1}


def test_estimates_stay_bounded_and_evenly_thinned() -> None:
    live = status()
    for step in range(3 * ALPHAS):
        live.estimate(step, outcome="ok", relative=1.0, absolute=float(step))
    windows = live.snapshot()["alpha_windows"]
    assert 0 < len(windows) <= WINDOWS
    assert windows[0]["median"] < 0.05 * 3 * ALPHAS
    assert windows[-1]["median"] > 0.95 * 3 * ALPHAS
    assert all(window["lower"] < window["median"] < window["upper"] for window in windows)


def test_windows_hold_enough_estimates_for_their_quartiles() -> None:
    alphas = [(step, float(step)) for step in range(5 * WINDOW_ESTIMATES + 3)]
    assert len(alpha_windows(alphas)) == 5


def test_too_few_estimates_make_no_window() -> None:
    assert alpha_windows([(0, 1.0), (1, 2.0), (2, 3.0)]) == []


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
