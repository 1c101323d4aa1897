"""What a run says where there is no terminal: a line now and then, on standard error."""

from __future__ import annotations

import io

import pytest
import rich.console

from trainer import console as module
from trainer.console import PLAIN_LINE_SECONDS, Console, ProgressLine


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_messages_go_to_standard_error_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("[bold] is not markup here, nor :smile: a picture" + " x" * 100)
    console.warn("disk nearly full")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[bold] is not markup here, nor :smile: a picture" + " x" * 100,
        "warning: disk nearly full",
    ]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.say("a")
    console.warn("b")
    assert capsys.readouterr() == ("", "")


def test_a_line_of_progress_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("training", 400, unit="steps", start=100) as line:
        clock.now += 500  # the first step waits for the pipeline to fill; the time left leaves it out
        line.update(110, "loss 0.5")
        clock.now += PLAIN_LINE_SECONDS
        line.update(200, "loss 0.4")
        clock.now += PLAIN_LINE_SECONDS - 1
        line.update(250, "loss 0.3")
        clock.now += 1
        line.update(250, "loss 0.2")
    assert capsys.readouterr().err.splitlines() == [
        "training: 110 / 400 steps loss 0.5",
        "training: 200 / 400 steps loss 0.4  0:01:07 left",
        "training: 250 / 400 steps loss 0.2  0:01:04 left",
    ]


def test_an_end_that_is_not_known_yet(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("verify", None, unit="MB") as line:
        clock.now += PLAIN_LINE_SECONDS
        line.update(1234.9, "0 damaged")
        line.total = 2000
        clock.now += PLAIN_LINE_SECONDS
        line.update(1999.9, "0 damaged")
        assert line.total == 2000
    first, second = capsys.readouterr().err.splitlines()
    assert first == "verify: 1,234 MB 0 damaged"
    assert second.startswith("verify: 1,999 / 2,000 MB 0 damaged")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_terminal_the_line_never_wraps(width: int) -> None:
    shown = io.StringIO()
    terminal = rich.console.Console(file=shown, force_terminal=True, width=width, _environ={})
    with ProgressLine(terminal, "preprocess", 1400, unit="MB", start=0) as line:
        for done in (100, 700):
            line.update(done, "2,949,120 rows  1,072,908 rows/s  290 MB/s")
    text = shown.getvalue()
    assert "pre" in text
    assert text.count("\n") == 1


def test_before_the_first_update_a_bar_says_that_it_prepares() -> None:
    shown = io.StringIO()
    terminal = rich.console.Console(file=shown, force_terminal=True, width=120, _environ={})
    with ProgressLine(terminal, "training", 400, unit="steps", start=0):
        pass
    assert "preparing" in shown.getvalue()
    with ProgressLine(terminal, "training", 400, unit="steps", start=0) as line:
        line.update(1, "loss 0.5")
    last_frame = shown.getvalue().rpartition("400 steps")[2]
    assert "loss 0.5" in last_frame
    assert "preparing" not in last_frame
