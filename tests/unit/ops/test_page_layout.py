"""The live page and the report fit a telephone and a screen, light and dark, whatever state the run is in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.live import AlphaFactor, LiveStatus
from ops.metrics import Metrics
from ops.server import Server
from ops.step_clock import StepClock
from tests.browser import WIDTHS, Browser, Scheme
from tests.synthetic_run import step_records, write_lines
from trainer.report import write_report

LONG = "runs/" + "a-name-that-somebody-gave-" * 4
BACKGROUNDS: dict[Scheme, str] = {"light": "rgb(245, 246, 248)", "dark": "rgb(15, 18, 22)"}


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with Browser(chromium) as browser:
        yield browser


def evaluating(now: list[int], *, first: int = 0) -> LiveStatus:
    """Three quarters of its time, from the step `first` on."""
    clock = StepClock(nanosecond_time=lambda: now[0])
    live = LiveStatus(clock, run=LONG, total_steps=10_000_000)
    live.state("evaluating")
    for step in range(first, first + 50):
        with clock.phase("forward"):
            now[0] += 100_000_000
        live.step(step, epoch=0, rows=262_144, loss=0.5, learning_rate=1e-3, seconds=clock.finish_step().seconds)
        factor = AlphaFactor(estimates=step - first + 1, factor=123.4, standard_error=56.78)
        relative = 50 * math.sin(step)
        live.estimate(
            step, outcome="ok", relative=relative, absolute=relative * 1e-3, per_rate=(-relative, 1e3), factor=factor
        )
        if step % 10 == 9:
            with clock.phase("evaluation"):
                now[0] += 3_000_000_000
            clock.finish_outside()
            for split in ("train", "validation", "test", "progressive"):
                live.evaluation(step, split, loss=0.61234, auc=0.71234)
    return live


def late(now: list[int]) -> LiveStatus:
    return evaluating(now, first=9_000_000)


def diverged(now: list[int]) -> LiveStatus:
    """Rolled back, and at its end."""
    live = evaluating(now)
    live.forget()
    for step in range(40, 80):
        loss = 1e12 if step == 59 else math.nan if step > 59 else 0.5
        live.step(step, epoch=0, rows=256, loss=loss, learning_rate=1e-12, seconds=0.1)
        live.message(step, f"step {step} withheld: the loss is nan; rows 1 to 2 of epoch 0, from {'x' * 90} (256)")
    live.state("training diverged")
    return live


def waiting(now: list[int]) -> LiveStatus:
    live = evaluating(now)
    live.state("waiting for new rows")
    return live


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", [evaluating, late, diverged, waiting])
def test_nothing_of_the_live_page_overflows_or_overlaps(browser: Browser, state, scheme: Scheme, width: int) -> None:
    live = state([0])
    with Server(Metrics(), "127.0.0.1", 0, live.snapshot) as server:
        shown = browser.show(server.url, width=width, scheme=scheme, says=str(live.snapshot()["state"]))
    assert live.snapshot()["state"] in shown.text
    assert (shown.width, shown.overflowing, shown.overlapping) == (width, [], [])
    assert shown.background == BACKGROUNDS[scheme]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / LONG.replace("/", "-")
    run.mkdir()
    write_lines(run / "steps.jsonl", step_records(300))
    write_lines(run / "events.jsonl", [{"time": 1.0, "event": "warning", "step": 7, "message": "x" * 300}])
    return write_report(run)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_of_the_report_overflows(browser: Browser, report: Path, scheme: Scheme, width: int) -> None:
    shown = browser.show(report.as_uri(), width=width, scheme=scheme, says="Alphastream report")
    assert "Alphastream report" in shown.text
    assert (shown.width, shown.overflowing) == (width, [])
    assert shown.background == BACKGROUNDS[scheme]
