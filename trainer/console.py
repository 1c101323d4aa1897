"""What a run shows on the terminal: a live line if there is one, a plain line now and then if there is none."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import IO, TextIO, cast

import rich.console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

PLAIN_LINE_SECONDS = 30.0
"""Without a terminal, one line of progress every so many seconds."""
PREPARING = "preparing"
"""What a progress bar says before the first update."""


class StandardError(io.TextIOBase):
    """`sys.stderr` as it is at each moment, but that no error of writing to it gets any further: the line is lost."""

    def __init__(self) -> None:
        self._lost_lines = 0

    @property
    def lost_lines(self) -> int:
        """Lines lost so far, by this object or by the stream itself."""
        return self._lost_lines + getattr(self._stream(), "lost_lines", 0)

    def _stream(self) -> TextIO | None:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # a live line puts itself in its place

    def write(self, text: str, /) -> int:
        try:
            self._stream().write(text)  # pyright: ignore[reportOptionalMemberAccess]
        except (OSError, ValueError, AttributeError):  # the system's; closed; none at all
            self._lost_lines += text.count("\n")
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self._stream().flush()  # pyright: ignore[reportOptionalMemberAccess]

    def isatty(self) -> bool:
        with suppress(OSError, ValueError, AttributeError):
            return self._stream().isatty()  # pyright: ignore[reportOptionalMemberAccess]
        return False

    def fileno(self) -> int:
        stream = self._stream()
        if stream is None:
            raise io.UnsupportedOperation("fileno")
        return stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(self._stream(), "encoding", None) or "utf-8"


class Console:
    """Messages above, progress below. Everything goes to standard error; results go to standard output.

    A message that cannot be written is lost and counted; the work goes on.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._output = StandardError()
        self._rich = rich.console.Console(
            file=cast("IO[str]", self._output), quiet=quiet, highlight=False, soft_wrap=True, emoji=False
        )

    @property
    def lost_lines(self) -> int:
        """Lines that could not be written so far."""
        return self._output.lost_lines

    def say(self, message: str) -> None:
        """One line that stays."""
        self._rich.print(message, markup=False)

    def warn(self, message: str) -> None:
        """One line that stays and stands out."""
        self._rich.print(f"warning: {message}", style="yellow", markup=False)

    def progress(self, title: str, total: float | None, *, unit: str, start: float = 0) -> ProgressLine:
        """A progress line of `total` units (None if the end is not known), already at `start`."""
        return ProgressLine(self._rich, title, total, unit=unit, start=start)


class ProgressLine:
    """One task's progress: a bar with time left on a terminal, a line every half minute elsewhere."""

    def __init__(
        self, console: rich.console.Console, title: str, total: float | None, *, unit: str, start: float
    ) -> None:
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._first: tuple[float, float] | None = None
        self._started = self._last_line = time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal:
            # On a narrow terminal the bar gives way, then the detail; the line never wraps.
            columns: list[ProgressColumn] = [
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None, table_column=Column(max_width=24)),
                _Count(unit, table_column=Column(no_wrap=True)),
                _TimeLeft(compact=True, table_column=Column(no_wrap=True)),
                TextColumn(
                    "{task.fields[detail]}", style="dim", table_column=Column(no_wrap=True, overflow="ellipsis")
                ),
            ]
            self._progress = Progress(*columns, console=console, refresh_per_second=5)
            self._task: TaskID = self._progress.add_task(title, total=total, completed=start, detail=PREPARING)  # pyright: ignore[reportArgumentType]
            self._progress.start()

    def update(self, completed: float, detail: str | Callable[[], str] = "") -> None:
        """`completed` units are done; `detail` is the rest of the line, or makes it where the line is shown."""
        if self._progress is not None:
            self._progress.update(self._task, completed=completed, detail=detail_text(detail))
            return
        now = time.monotonic()
        self._first = self._first or (completed, now)
        if now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            left = self._time_left(completed, now)
            self._console.print(f"{self._title}: {self._counted(completed)} {detail_text(detail)}{left}", markup=False)

    def _time_left(self, completed: float, now: float) -> str:
        """From the mean speed since the first update; nothing while that, or the end, is not known.

        What came before the first update is preparation, such as a pipeline that fills, and does not come again.
        """
        first, began = self._first or (completed, now)
        done = completed - first
        if self._total is None or done <= 0:
            return ""
        minutes, seconds = divmod(round((self._total - completed) * (now - began) / done), 60)
        return f"  {minutes // 60}:{minutes % 60:02}:{seconds:02} left"

    def _counted(self, completed: float) -> str:
        text = f"{math.floor(completed):,}"
        if self._total is not None:
            text += f" / {self._total:,.0f}"
        return f"{text} {self._unit}"

    @property
    def total(self) -> float | None:
        """Units in all, once known."""
        return self._total

    @total.setter
    def total(self, total: float | None) -> None:
        self._total = total
        if self._progress is not None:
            self._progress.update(self._task, total=total)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Count(ProgressColumn):
    """`1,234 / 5,678 steps`."""

    def __init__(self, unit: str, *, table_column: Column) -> None:
        super().__init__(table_column)
        self._unit = unit

    def render(self, task: Task) -> str:
        total = "" if task.total is None else f" / {task.total:,.0f}"
        return f"{math.floor(task.completed):,}{total} {self._unit}"


class _TimeLeft(TimeRemainingColumn):
    """`01:23 left`; nothing once the end is reached or while nobody knows."""

    def render(self, task: Task) -> Text:
        if task.finished or task.time_remaining is None:
            return Text("")
        return super().render(task) + Text(" left")


def detail_text(detail: str | Callable[[], str]) -> str:
    """What `ProgressLine.update` is given, as text."""
    return detail if isinstance(detail, str) else detail()
