"""The live page of a continued run shows what it would show had it never stopped."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ops.live import LiveStatus
from ops.live.curve import Curve
from ops.step_clock import StepClock
from tests.synthetic_run import alpha_records, evaluation_records, step_records, write_run
from trainer.job.observer import POOLED_ESTIMATES, pooled_factor
from trainer.job.recording.replay import replay_history
from trainer.records import Records, RunHistory, thinning

STEPS = 3000


def undisturbed() -> LiveStatus:
    """Told of everything as it happened."""
    live, records = LiveStatus(StepClock(), run="run"), step_records(STEPS)
    for record in records:
        numbers = {name: record[name] for name in ("epoch", "rows", "loss", "learning_rate", "seconds")}
        live.step(record["step"], **numbers)
    pairs: deque[tuple[float, float]] = deque(maxlen=POOLED_ESTIMATES)
    for record in alpha_records(records, variants=True):
        per_rate, rate = None, record["learning_rate"]
        if record["relative"] is not None:
            pairs.append((record["slope"], record["curvature"]))
            per_rate = record["slope"] / rate, record["curvature"] / rate**2
        numbers = {name: record[name] for name in ("outcome", "relative", "absolute")}
        live.estimate(record["step"], **numbers, per_rate=per_rate, factor=pooled_factor(pairs))
    for record in evaluation_records(records):
        live.evaluation(record["step"], record["split"], loss=record["loss"], auc=record["auc"])
    return live


SHOWN = ("loss_curve", "learning_rate_curve", "alpha_bins", "alpha", "outcomes", "evaluations", "loss", "learning_rate")


def shown(live: LiveStatus) -> dict[str, Any]:
    return {name: live.snapshot()[name] for name in SHOWN}


def test_a_continued_run_shows_what_one_that_never_stopped_does(tmp_path: Path) -> None:
    live = LiveStatus(StepClock(), run="run")
    latest = replay_history(RunHistory.load(write_run(tmp_path, STEPS, variants=True)), live)
    expected, found = shown(undisturbed()), shown(live)
    for curve in ("loss_curve", "learning_rate_curve"):
        assert [step for step, _ in found[curve]] == [step for step, _ in expected[curve]]
        values = [value for _, value in expected[curve]]
        assert [value for _, value in found[curve]] == pytest.approx(values, rel=1e-12)
    for name in SHOWN[2:]:
        assert found[name] == expected[name], name
    assert len(latest) == POOLED_ESTIMATES
    assert latest.maxlen == POOLED_ESTIMATES


def test_a_thinned_run_shows_the_same_curves(tmp_path: Path) -> None:
    write_run(tmp_path, STEPS, variants=True)
    for name in ("steps", "alpha"):
        records = Records(tmp_path / f"{name}.jsonl", one_a_step=True)
        records.rewrite(partial(thinning, records.path, done=STEPS, full_steps=400, checkpoints=[]))
        records.close()
    history = RunHistory.load(tmp_path)
    assert len(history.steps["step"]) < STEPS / 2
    live = LiveStatus(StepClock(), run="run")
    replay_history(history, live)
    expected, found = shown(undisturbed()), shown(live)
    assert found["outcomes"] == expected["outcomes"]
    assert found["evaluations"] == expected["evaluations"]
    assert len(found["loss_curve"]) == pytest.approx(len(expected["loss_curve"]), abs=2)
    steps, values = zip(*expected["learning_rate_curve"], strict=True)
    for step, value in found["learning_rate_curve"]:
        nearest = min(range(len(steps)), key=lambda index: abs(steps[index] - step))
        assert value == pytest.approx(values[nearest], rel=0.05, abs=2e-6)
    assert not any(one["after_gap"] for one in found["alpha_bins"])


def test_a_run_without_records_shows_nothing(tmp_path: Path) -> None:
    live = LiveStatus(StepClock(), run="run")
    assert list(replay_history(RunHistory.load(tmp_path), live)) == []
    assert live.snapshot()["loss_curve"] == []


def test_means_of_a_curve_count_every_step() -> None:
    curve = Curve(points=4)
    for step, (value, steps) in enumerate([(1.0, 1), (2.0, 3), (4.0, 1), (math.pi, 1)]):
        curve.add(step, value, steps=steps)
    assert curve.points() == [(1, pytest.approx(7 / 4)), (3, pytest.approx((4 + math.pi) / 2))]
