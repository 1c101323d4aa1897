"""The study's line counts finished runs and the parts of those in progress, and says how long is left."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rich.console

from trainer.console import PLAIN_LINE_SECONDS, Console, ProgressLine
from trainer.study.definition import StudyRun, read_study
from trainer.study.progress import Message, RunConsole, RunNote, RunProgress, RunWarning, StudyLine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until `now` is changed."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def runs(tmp_path: Path) -> tuple[StudyRun, ...]:
    (tmp_path / "my.toml").write_text('data.path = "D"\nstudy = { seeds = [0, 1], arm = [{ name = "a" }] }')
    return read_study(tmp_path / "my.toml").unfold().runs


class Line:
    """Keeps what it was told last."""

    def update(self, completed: float, detail: str = "") -> None:
        self.completed, self.detail = completed, detail


def test_a_run_sends_its_share_of_the_budget_and_not_more_often_than_is_seen(clock: SimpleNamespace) -> None:
    sent: list[Message] = []
    with RunConsole(sent.append, budget_seconds=None).progress("training", 200, unit="steps") as line:
        line.update(50, "loss 0.5000  lr 1e-3")
        line.update(51, "loss 0.4999  lr 1e-3")
        clock.now += 1
        line.update(100, "loss 0.4000  lr 1e-3")
    assert sent == [
        RunProgress(share=0.25, detail="50 / 200 steps loss 0.5000"),
        RunProgress(share=0.5, detail="100 / 200 steps loss 0.4000"),
    ]


def test_a_budget_in_seconds_counts_where_it_is_nearer(clock: SimpleNamespace) -> None:
    sent: list[Any] = []
    line = RunConsole(sent.append, budget_seconds=10.0).progress("training", None, unit="steps")
    clock.now += 4
    line.update(7)
    clock.now += 40
    line.update(8)
    assert [message.share for message in sent] == [pytest.approx(0.4), 1.0]


def test_the_line_sums_runs_in_progress(runs: tuple[StudyRun, ...]) -> None:
    line = Line()
    study = StudyLine(line, Console(quiet=True), done=3)  # pyright: ignore[reportArgumentType]
    study.listen(runs[0], RunProgress(share=0.25, detail="step 1"))
    assert (line.completed, line.detail) == (3.25, "a/seed0 step 1")
    study.listen(runs[1], RunProgress(share=0.5, detail="step 2"))
    assert (line.completed, line.detail) == (3.75, "a/seed1 step 2 (and 1 more)")
    study.finished(runs[0])
    assert line.completed == 4.5
    study.listen(runs[1], RunNote(text="validation loss 0.5"))
    assert line.detail == "a/seed1 validation loss 0.5"


def test_warnings_name_their_run(runs: tuple[StudyRun, ...], capsys: pytest.CaptureFixture[str]) -> None:
    StudyLine(Line(), Console(), done=0).listen(runs[1], RunWarning(text="the disk is full"))  # pyright: ignore[reportArgumentType]
    assert "warning: a/seed1: the disk is full" in capsys.readouterr().err


def test_without_a_terminal_the_time_left_is_told(clock: SimpleNamespace) -> None:
    said = io.StringIO()
    line = ProgressLine(rich.console.Console(file=said, width=200), "study", 10, unit="runs", start=2)
    clock.now += PLAIN_LINE_SECONDS
    line.update(2.0, "starting")
    clock.now += 3 * PLAIN_LINE_SECONDS
    line.update(2.9, "a run")
    first, second = said.getvalue().splitlines()
    assert first == "study: 2 / 10 runs starting"
    assert second == "study: 2 / 10 runs a run  0:11:50 left"  # 0.9 runs in 90 s since the first update, 7.1 to go
