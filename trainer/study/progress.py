"""What a study shows: one line for all its runs, fed by what each run would have shown of itself."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass

import rich.console

from trainer.console import Console, ProgressLine, detail_text
from trainer.study.definition import StudyRun

SAID_SECONDS = 0.2
"""A run tells how far it is at most once in so many seconds."""


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is."""

    share: float
    """Of its budget, 0 to 1."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class RunWarning:
    """What a run warns of."""

    text: str


@dataclass(frozen=True, kw_only=True)
class RunNote:
    """What a run says of itself, such as an evaluation."""

    text: str


Message = RunProgress | RunWarning | RunNote
Send = Callable[[Message], None]


class RunConsole(Console):
    """The console of a run within a study: nothing is printed, everything is sent on."""

    def __init__(self, send: Send, *, budget_seconds: float | None) -> None:
        super().__init__(quiet=True)
        self._send, self._budget_seconds = send, budget_seconds

    def say(self, message: str) -> None:
        """Sends the message on."""
        self._send(RunNote(text=message))

    def warn(self, message: str) -> None:
        """Sends the warning on."""
        self._send(RunWarning(text=message))

    def progress(self, title: str, total: float | None, *, unit: str, start: float = 0) -> ProgressLine:
        """A line that is sent on instead of shown."""
        return _RunLine(self._send, total, unit=unit, start=start, budget_seconds=self._budget_seconds)


class _RunLine(ProgressLine):
    def __init__(
        self, send: Send, total: float | None, *, unit: str, start: float, budget_seconds: float | None
    ) -> None:
        super().__init__(rich.console.Console(file=io.StringIO()), "", total, unit=unit, start=start)
        self._send, self._budget_seconds = send, budget_seconds
        self._said = -SAID_SECONDS

    def update(self, completed: float, detail: str | Callable[[], str] = "") -> None:
        """Sends the share of the budget that is used, by steps or by time, and the first figure of `detail`."""
        now = time.monotonic()
        if now - self._said < SAID_SECONDS:
            return
        self._said = now
        shares = [completed / self.total] if self.total else []
        if self._budget_seconds is not None:
            shares.append((now - self._started) / self._budget_seconds)
        figure, _, _ = detail_text(detail).partition("  ")
        self._send(RunProgress(share=min(max(shares, default=0.0), 1.0), detail=f"{self._counted(completed)} {figure}"))


class StudyLine:
    """Keeps the study's line: runs done with the parts of those in progress, and the latest run heard of."""

    def __init__(self, line: ProgressLine, console: Console, *, done: int) -> None:
        self._line, self._console = line, console
        self._done = done
        self._shares: dict[str, float] = {}

    def listen(self, run: StudyRun, message: Message) -> None:
        """Takes in what a run sent."""
        if isinstance(message, RunWarning):
            self._console.warn(f"{run.name}: {message.text}")
            return
        if isinstance(message, RunNote):
            self._update(f"{run.name} {message.text}")
            return
        self._shares[run.name] = message.share
        others = len(self._shares) - 1
        self._update(f"{run.name} {message.detail}" + (f" (and {others} more)" if others else ""))

    def finished(self, run: StudyRun) -> None:
        """The run is over."""
        self._shares.pop(run.name, None)
        self._done += 1
        self._update(f"{run.name} finished")

    def _update(self, detail: str) -> None:
        self._line.update(self._done + sum(self._shares.values()), detail)
