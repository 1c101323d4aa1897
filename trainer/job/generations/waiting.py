"""Waiting for a generation that isn't there yet, which is neither a stall nor a hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.device import Feed
from pipeline.errors import InterruptedWaitError
from trainer.job.observer import Outlets

WAITING = "waiting for new rows"
"""What the live page says meanwhile."""
SLICE_SECONDS = 1.0
"""At most so long after each other it is told that the wait goes on."""
SLICES_A_BUDGET = 4
"""And so often within what a wait for rows may take."""


@dataclass(kw_only=True)
class LogWait:
    """Waits for the log of `feed` to grow, and says so wherever a run speaks."""

    feed: Feed
    outlets: Outlets
    idle_seconds: float | None
    """How long a generation is waited for; None: without end."""
    budget_seconds: float = 0.0
    """How long waiting for the rows of a step may take before it counts as a hang, which this is not; 0: for ever."""
    monotonic: Callable[[], float] = time.monotonic
    _generation: int = field(default=-1, init=False)
    """The one that is waited for."""
    _waited: float = field(default=0.0, init=False)
    """Seconds for which that one could have been found."""
    _trouble: str | None = field(default=None, init=False)

    def wait(self, *, step: int) -> bool:
        """Waits until rows are on their way or `feed.interrupted`; False once `idle_seconds` have passed in vain.

        Time in which the folder could not be looked at does not count; a wait that goes on after an interruption does.
        """
        if self._generation != self.feed.position.epoch:
            self._generation, self._waited = self.feed.position.epoch, 0.0
            self._tell(step)
        metrics, live = self.outlets.metrics, self.outlets.live
        live.state(WAITING)
        metrics.waiting_for_generation(True)
        try:
            return self._wait(step)
        except InterruptedWaitError:
            return True
        finally:
            metrics.waiting_for_generation(False)
            live.state("training")

    def _wait(self, step: int) -> bool:
        log, since = self.feed.log, self.monotonic()
        assert log is not None, "only a log that is followed lets wait"
        while not (came := self._rows_came()) and not self._waited_enough():
            now = self.monotonic()
            self._count(now - since)
            self._waited += now - since if log.trouble is None else 0.0
            since = now
            self.outlets.manager.alive()
            if log.trouble is not None and self._trouble is None:
                self.outlets.warn(f"cannot look for new generations ({log.trouble}); trying again", step=step)
            self._trouble = log.trouble
        self._count(self.monotonic() - since)
        return came

    def _count(self, seconds: float) -> None:
        """What was waited is counted by itself, and no verdict on data or compute takes it for a slow reader's."""
        self.outlets.metrics.waited_for_generation(seconds)
        self.outlets.clock.leave_out(seconds)

    def _rows_came(self) -> bool:
        """Whether they are on their way within a slice, which is a phase of its own: one that is open for long is taken
        for a hang."""
        with self.outlets.clock.pause_phase("data_wait"):
            return self.feed.await_rows(self._slice_seconds())

    def _waited_enough(self) -> bool:
        return self.idle_seconds is not None and self._waited >= self.idle_seconds

    def _slice_seconds(self) -> float:
        longest = min(SLICE_SECONDS, self.budget_seconds / SLICES_A_BUDGET) if self.budget_seconds else SLICE_SECONDS
        left = longest if self.idle_seconds is None else self.idle_seconds - self._waited
        return max(min(left, longest), 0.0)

    def _tell(self, step: int) -> None:
        count = self._generation
        rows = f"all rows of {count} generation{'s' if count > 1 else ''} are trained on"
        until = "" if self.idle_seconds is None else f" for {self.idle_seconds:g} s"
        message = f"{rows}; waiting for the next{until}"
        self.outlets.directory.event("waiting", step=step, generations=count, message=message)
        self.outlets.live.message(step, message)
        self.outlets.console.say(f"step {step:,}: {message}")
