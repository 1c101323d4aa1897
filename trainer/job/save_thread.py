"""Saves that are written in a thread while training goes on, one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from trainer.ranks import RanksLostError

ABANDON_SECONDS = 5.0
"""So long a process that was told to stop at once waits for the thread to leave its save."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class SaveOutcome:
    """What came of one save."""

    step: int
    path: Path | None = None
    """The checkpoint; None without one."""
    error: BaseException | None = None
    """Why there is none; None with neither if the weights are not finite."""
    unix_time: float
    """When it was published, or given up."""


class SaveAbandonedError(Exception):
    """Raised within a save that is not wanted any more."""


class SaveThread:
    """At most one save, in a thread of its own; used by one other thread, as a context.

    The end of the context waits for the save, and leaves its outcome to `take`. Only for what is no `Exception`, a
    `KeyboardInterrupt` that shall end the process at once, the save is abandoned at its next file; for a lost rank,
    which the save may be waiting for, once it has had `ABANDON_SECONDS` to end. A thread that the disk or another
    rank holds for longer than that is left behind, and ends with the process: nothing of an unfinished save counts.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._outcome: SaveOutcome | None = None
        self._abandoned = False
        self._began_at = 0.0

    def begin(self, step: int, write: Callable[[], Path | None]) -> None:
        """Calls `write` in the thread; the outcome of the save before must have been taken."""
        assert self._thread is None, "a save is under way"

        def run() -> None:
            path = error = None
            try:
                path = write()
            except BaseException as raised:  # crosses to the thread that takes the outcome
                error = raised
            self._outcome = SaveOutcome(step=step, path=path, error=error, unix_time=time.time())

        self._began_at = time.monotonic()
        # a daemon, since the interpreter waits for all others before it exits
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def seconds(self) -> float:
        """For how long a save has been written, 0 if none is; asked from any thread."""
        return time.monotonic() - self._began_at if self.busy else 0.0

    def take(self, *, wait: bool = False) -> SaveOutcome | None:
        """The outcome of a save that has ended, once; None without one, or while it is under way and not awaited."""
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        self._thread.join()
        outcome, self._thread, self._outcome = self._outcome, None, None
        assert outcome is not None, "the thread of a save died"
        return outcome

    def refuse_abandoned(self) -> None:
        """Raises SaveAbandonedError once the save is; for the thread to call where it can stop."""
        if self._abandoned:
            raise SaveAbandonedError

    def until_abandoned(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, ended by SaveAbandonedError once the save is."""
        for item in items:
            self.refuse_abandoned()
            yield item

    def __enter__(self) -> SaveThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        if isinstance(error, RanksLostError):
            self._thread.join(ABANDON_SECONDS)
            self._abandoned = True
        elif error is None or isinstance(error, Exception):
            self._thread.join()
        else:
            self._abandoned = True
            self._thread.join(ABANDON_SECONDS)
