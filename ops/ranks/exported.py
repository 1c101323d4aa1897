"""What a run on several ranks exports of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import Counter, Gauge

from ops.ranks.times import RankTimes
from ops.series import SENT_FOR


class RankMetrics:
    """The series of ranks; of a run on one they stay as they are at first."""

    def __init__(self, gauge: Callable[[str], Gauge], counter: Callable[[str], Counter]) -> None:
        """`gauge` and `counter` make a series of `ops.series`."""
        self._spread = [gauge(f"rank_phase_{name}_seconds") for name in ("min", "mean", "max")]
        self._of_slowest, self._slowest = gauge("slowest_rank_phase_seconds"), gauge("slowest_rank")
        self._sent = counter("sent_bytes_total")

    def times(self, times: RankTimes) -> None:
        """Set where the time of all ranks went over the latest stretch."""
        rows = (times.minimum, times.mean, times.maximum, times.of_slowest)
        for series, seconds in zip((*self._spread, self._of_slowest), rows, strict=True):
            for phase, spent in seconds.items():
                series.labels(phase).set(spent)
        self._slowest.set(times.slowest)

    def sent(self, by_purpose: Mapping[str, float]) -> None:
        """Count bytes that all ranks together have sent to one another since, by what of `SENT_FOR` they were for."""
        for purpose, size in by_purpose.items():
            assert purpose in SENT_FOR, f"unknown purpose {purpose!r}"
            self._sent.labels(purpose).inc(size)
