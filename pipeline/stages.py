"""The threads between the disk and the model: how many cores they have, and what each stage costs them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


def usable_cores() -> int:
    """The cores that this process may use: fewer than the machine has if it is confined to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StageTotals:
    """Totals by stage name; safe to add to from any thread.

    Seconds are a thread's own wall time, so two threads busy for one second add two: rows / seconds of a
    stage is the speed of one thread of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, tuple[float, int]] = {}

    @contextmanager
    def timed(self, stage: str, rows: int) -> Iterator[None]:
        """Adds the duration of the block, and `rows`, to `stage`; nothing if the block raises."""
        start = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - start, rows)

    def add(self, stage: str, seconds: float, rows: int) -> None:
        """Adds to `stage` what was measured elsewhere."""
        with self._lock:
            total_seconds, total_rows = self._totals.get(stage, (0.0, 0))
            self._totals[stage] = (total_seconds + seconds, total_rows + rows)

    def totals(self) -> dict[str, tuple[float, int]]:
        """(seconds, rows) of every stage so far."""
        with self._lock:
            return dict(self._totals)
