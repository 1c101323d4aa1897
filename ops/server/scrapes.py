"""When /metrics was read, so that the end of a run can be read too."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

GAPS = 4
"""The interval between scrapes is judged by so many of the latest."""
LATE = 1.5
"""A scrape may come so many times its interval after the one before."""


class Scrapes:
    """Notes every answer of /metrics, and can wait for the next; safe for any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.now = monotonic
        self._read = threading.Condition()
        self._times: deque[float] = deque(maxlen=GAPS + 1)
        """When each of the latest was sent whole."""
        self._latest_began = -float("inf")

    def noting(self, answer: Iterable[bytes], *, began: float) -> Iterator[bytes]:
        """`answer`, of a request taken up at `began`, noted once all of it is sent."""
        yield from answer
        with self._read:
            self._times.append(self.now())
            self._latest_began = max(self._latest_began, began)
            self._read.notify_all()

    def patience(self) -> float:
        """Seconds within which the next scrape is due; 0 if nobody reads at intervals, or no longer does.

        The interval is the longest of the latest gaps, for two readers may take turns.
        """
        with self._read:
            times = list(self._times)
        if len(times) < 2:
            return 0.0
        interval = max(after - before for before, after in itertools.pairwise(times))
        return max(times[-1] + LATE * interval + 1.0 - self.now(), 0.0)

    def wait(self, seconds: float) -> bool:
        """Waits, for `seconds` at most, for an answer that began after this call; whether one was sent."""
        called = self.now()
        with self._read:
            return self._read.wait_for(lambda: self._latest_began >= called, seconds)
