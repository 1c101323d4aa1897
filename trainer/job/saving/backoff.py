"""When what failed is tried again: soon at first, then ever more seldom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Backoff:
    """Pauses after failures in a row: `first_seconds`, then twice as long each time, up to `most_seconds`."""

    first_seconds: float
    most_seconds: float
    now: Callable[[], float] = time.monotonic
    """The clock, in seconds."""
    _failures: int = field(default=0, init=False)
    _due_at: float | None = field(default=None, init=False)

    def failed(self) -> float:
        """An attempt failed; the seconds until the next one is due."""
        # no power of a large number: a disk can be full for a week
        seconds = min(self.first_seconds * 2 ** min(self._failures, 30), self.most_seconds)
        self._failures += 1
        self._due_at = self.now() + seconds
        return seconds

    def began(self) -> None:
        """An attempt is under way: until it is told of, none is due for the sake of a failure."""
        self._due_at = None

    def succeeded(self) -> None:
        self._failures, self._due_at = 0, None

    def due(self, *, scheduled: bool) -> bool:
        """Whether to try now: after a failure when its pause is over, `scheduled` or not; otherwise if `scheduled`."""
        return scheduled if self._due_at is None else self.now() >= self._due_at
