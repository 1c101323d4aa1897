"""What a run says while it trains: one pooled factor of α* with its margin, and records that others can read soon."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import generate_latest
from scipy.optimize import minimize_scalar

from ops.live import LiveStatus
from ops.metrics import Metrics
from ops.step_clock import StepClock, StepTiming
from pipeline.device import Feed
from stepsize import Outcome
from tests.estimates import estimate
from trainer.config import config_from
from trainer.console import Console, ProgressLine
from trainer.job.observer import Outlets, RunObserver, pooled_factor
from trainer.job.run_directory import RunDirectory
from trainer.records.records import read_records


class NoRows:
    """A feed that the observer asks for its state, and that has none."""

    skipped_rows = 0
    log = None

    def queued_batches(self) -> int:
        return 0

    def stage_totals(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("step_seconds", "steps_until_read"), [(2.0, 3), (0.01, 50)])
def test_records_can_be_read_after_five_seconds_or_fifty_steps(
    tmp_path: Path, step_seconds: float, steps_until_read: int
) -> None:
    """The first step is written at once; what came of the steps after it, with the next write."""
    config = config_from({"data": {"path": "DATA"}, "model": {"table_rows": 64}}, where="test").resolved()
    clock, console = StepClock(), Console(quiet=True)
    timing = StepTiming(nanoseconds=round(step_seconds * 1e9), phase_nanoseconds={})
    with RunDirectory(tmp_path / "run", config) as directory:
        live = LiveStatus(clock, run="run")
        outlets = Outlets(directory=directory, metrics=Metrics(), live=live, clock=clock, console=console)
        observer = RunObserver(outlets, cast(Feed, NoRows()), console.progress("training", None, unit="steps"))
        seen = []
        for step in range(60):
            record = {"step": step, "loss": 0.5, "learning_rate": 1e-3, "rows": 8, "epoch": 0}
            observer.on_step(record, timing, (step + 1) * step_seconds)
            seen.append(len(list(read_records(tmp_path / "run" / "steps.jsonl"))))
    assert seen[0] == 1
    assert seen.index(steps_until_read + 1) == steps_until_read
    assert set(seen[1:steps_until_read]) == {1}


class Said:
    """A progress line that keeps what it shows."""

    def update(self, step: int, text: Callable[[], str]) -> None:
        self.text = text()


def test_the_terminal_s_loss_forgets_a_step_that_leapt_and_one_that_was_no_number(tmp_path: Path) -> None:
    config = config_from({"data": {"path": "DATA"}, "model": {"table_rows": 64}}, where="test").resolved()
    clock, console, said, shown = StepClock(), Console(quiet=True), Said(), []
    timing = StepTiming(nanoseconds=10**9, phase_nanoseconds={})
    with RunDirectory(tmp_path / "run", config) as directory:
        live = LiveStatus(clock, run="run")
        outlets = Outlets(directory=directory, metrics=Metrics(), live=live, clock=clock, console=console)
        observer = RunObserver(outlets, cast(Feed, NoRows()), cast(ProgressLine, said))
        for step in range(120):
            loss = {20: 1e6, 110: math.nan}.get(step, 0.5)
            record = {"step": step, "loss": loss, "learning_rate": 1e-3, "rows": 8, "epoch": 0}
            observer.on_step(record, timing, step + 1.0)
            shown.append(said.text.split()[1])
    assert (shown[19], shown[110]) == ("0.5000", "nan")
    assert set(shown[70:110]) | set(shown[111:]) == {"0.5000"}


def test_alpha_of_many_steps_is_recorded_and_shown_apart(tmp_path: Path) -> None:
    """It is no estimate of how long one step should have been, and must not be pooled with those."""
    config = config_from({"data": {"path": "DATA"}, "model": {"table_rows": 64}}, where="test").resolved()
    clock, console, metrics = StepClock(), Console(quiet=True), Metrics()
    with RunDirectory(tmp_path / "run", config) as directory:
        directory.begin(config, records={})
        live = LiveStatus(clock, run="run")
        outlets = Outlets(directory=directory, metrics=metrics, live=live, clock=clock, console=console)
        observer = RunObserver(outlets, cast(Feed, NoRows()), console.progress("training", None, unit="steps"))
        for step in range(12):
            observer.on_estimate(estimate(step, 2.0, error=0.1, rate=1.0))
        before = outlets.live.snapshot()["alpha"]
        observer.on_estimate(replace(estimate(40, 0.6, error=0.05, rate=1.0), horizon=17))
        observer.on_estimate(replace(estimate(50, outcome=Outcome.FLAT), horizon=20))
        shown = outlets.live.snapshot()
    run = tmp_path / "run"
    assert len(list(read_records(run / "alpha.jsonl"))) == 12
    found = list(read_records(run / "horizon.jsonl"))
    assert [(one["step"], one["horizon"], one["outcome"]) for one in found] == [(40, 17, "ok"), (50, 20, "flat")]
    assert shown["alpha"] == before
    assert shown["horizon"] == {"steps": 17, "relative": 0.6, "margin": pytest.approx(1.96 * 0.05)}
    text = generate_latest(metrics.registry).decode()
    assert 'alphastream_alpha_estimates_total{outcome="ok"} 12.0' in text
    assert 'alphastream_horizon_estimates_total{outcome="ok"} 1.0' in text
    assert 'alphastream_horizon_estimates_total{outcome="flat"} 1.0' in text
    assert "alphastream_horizon_alpha_relative 0.6" in text
    assert "alphastream_horizon_steps 17.0" in text


def test_the_factor_is_the_one_that_suits_all_steps_best() -> None:
    """The minimum of Σ (α·s + α²·c/2), found by search; short steps of a warm-up hardly count."""
    warmup, rest = [(-1e-6, 1e-9)] * 20, [(-0.4, 0.5), (-0.2, 0.5)] * 10
    factor = pooled_factor([*warmup, *rest])
    best: Any = minimize_scalar(lambda alpha: sum(alpha * s + alpha**2 * c / 2 for s, c in [*warmup, *rest]))
    assert factor.estimates == 40
    assert factor.factor == pytest.approx(best.x, rel=1e-6)
    assert factor.factor == pytest.approx(0.6, rel=1e-4)


def test_the_error_comes_from_the_scatter() -> None:
    """Slopes 1 ± 0.5 at curvature 1: standard deviation 0.5, error of the mean of n 0.5 / √(n − 1)."""
    factor = pooled_factor([(-0.5, 1.0), (-1.5, 1.0)] * 50)
    assert factor.factor == pytest.approx(1.0)
    assert factor.standard_error == pytest.approx(0.5 / math.sqrt(99))
    assert factor.margin == pytest.approx(1.96 * 0.5 / math.sqrt(99))


@pytest.mark.parametrize(
    "estimates",
    [[(-1.0, 1.0)] * 9, [(-1.0, 0.0)] * 20, [*[(-1.0, 1.0)] * 150, (-9e13, 1e12)]],
    ids=["nine", "flat", "one that diverged"],
)
def test_too_few_estimates_or_no_curvature_or_that_of_one_alone_make_no_factor(
    estimates: list[tuple[float, float]],
) -> None:
    factor = pooled_factor(estimates)
    assert factor.factor is None
    assert factor.estimates == len(estimates)
