"""The step clock: where the wall time of a run goes, in phases that sum to it exactly."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

PHASES = ("data_wait", "transfer", "forward", "backward", "optimizer", "alpha", "evaluation", "checkpoint", "other")
"""Where time can go; `other` is whatever no phase claimed."""

NANOSECONDS = 1_000_000_000

DATA_BOUND_SHARE = 0.1
"""From this share of the time on, waiting for rows bounds training."""


class BoundKind(StrEnum):
    """What limits the speed of training."""

    DATA = "data"
    """The step waits for rows: a faster pipeline makes training faster."""
    COMPUTE = "compute"
    """Rows are there when they are wanted: only a faster step makes training faster."""
    UNKNOWN = "unknown"
    """No step has been finished yet."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The verdict over the most recent steps.

    `data_share` = Σ data_wait / Σ wall time of those steps, in 0..1; `seconds` is that wall time.
    """

    kind: BoundKind
    data_share: float
    seconds: float
    steps: int

    def __str__(self) -> str:
        if self.kind is BoundKind.UNKNOWN:
            return "no step finished yet"
        return f"{self.kind}-bound: {100 * self.data_share:.0f} % of the time waiting for data"


def bound_of(data_share: float, *, seconds: float, steps: int, data_bound_share: float = DATA_BOUND_SHARE) -> Bound:
    """The verdict over `steps` steps that took `seconds`, a share of which passed in waiting for rows."""
    if seconds == 0:
        return Bound(kind=BoundKind.UNKNOWN, data_share=0.0, seconds=0.0, steps=steps)
    kind = BoundKind.DATA if data_share >= data_bound_share else BoundKind.COMPUTE
    return Bound(kind=kind, data_share=data_share, seconds=seconds, steps=steps)


@dataclass(frozen=True, kw_only=True)
class StepTiming:
    """The wall time of one interval and its phases, in whole nanoseconds: the phases sum to `nanoseconds`."""

    nanoseconds: int
    phase_nanoseconds: Mapping[str, int]

    @property
    def seconds(self) -> float:
        return self.nanoseconds / NANOSECONDS

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of every phase of `PHASES`, zeros included."""
        return {name: spent / NANOSECONDS for name, spent in self.phase_nanoseconds.items()}


class QueueWait(Protocol):
    """The device's queue waiting for the copy of a pair: the marks around it, and when the host set the first."""

    @property
    def began(self) -> Any: ...
    @property
    def ended(self) -> Any: ...
    @property
    def began_at(self) -> int:
        """Nanoseconds of the host's clock."""
        ...


class StepClock:
    """Splits the time of one thread, the training loop's, into phases.

    At every moment exactly one phase runs: the innermost open one, or `other`. Nothing is counted
    twice and nothing is lost, so the phases of an interval sum to its wall time to the nanosecond.
    The time is the host's, which is right where the host does the work or waits for it; `ops.device_clock` has the
    clock for a device that works behind it.

    Phases are entered and intervals finished by one thread; `totals`, `open_phases` and `bound` may be read by any.
    """

    def __init__(
        self,
        *,
        recent_steps: int = 200,
        data_bound_share: float = DATA_BOUND_SHARE,
        nanosecond_time: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """`bound` looks back over `recent_steps` steps and calls them data-bound from `data_bound_share` on.

        The share need not be near one half: with prefetching, a pipeline that keeps up is hardly
        waited for at all, so a wait that can be seen is a pipeline that cannot. The first step, which waits for the
        pipeline to fill and for compilation, is left out once there is another.
        """
        self._now = nanosecond_time
        self._threshold = data_bound_share
        self._lock = threading.Lock()
        self._open: list[str] = []
        self._interval: dict[str, int] = dict.fromkeys(PHASES, 0)
        self._totals: dict[str, int] = dict.fromkeys(PHASES, 0)
        self._recent: deque[StepTiming] = deque(maxlen=recent_steps)
        self._first: StepTiming | None = None
        self._mark = self._now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside to `name`, one of `PHASES`, except what an inner phase takes.

        Raises: ValueError for an unknown name.
        """
        if name not in self._interval:
            raise ValueError(f"phase {name!r} is not known; use one of {', '.join(PHASES)}")
        with self._lock:
            self._charge()
            self._open.append(name)
        try:
            yield
        finally:
            with self._lock:
                self._charge()
                self._open.pop()

    @property
    def in_flight_steps(self) -> int:
        """How many steps later the time of a step is read: on the host, it is known when the step ends."""
        return 0

    def handed_over(self, wait: QueueWait | None) -> None:
        """The rows of the step are there; `wait` is a device's for their copy, which the host's clock doesn't see."""

    def end_step(self) -> Callable[[], StepTiming]:
        """End the step, and give what reads its time, to be called in the order of the steps."""
        timing = self.finish_step()
        return lambda: timing

    def finish_step(self) -> StepTiming:
        """End the interval since the last finish as a step: it counts in `bound`."""
        with self._lock:
            timing = self._finish()
            self._count(timing)
        return timing

    @property
    def first_step(self) -> StepTiming | None:
        """The first step's time, which no later one is like; None before its end."""
        return self._first

    def finish_outside(self) -> StepTiming:
        """End the interval since the last finish as time between steps (evaluation, checkpoint, start-up)."""
        with self._lock:
            return self._finish()

    def open_phases(self) -> dict[str, float]:
        """Seconds of every phase since the last finish, the phase that is open now included."""
        with self._lock:
            return self._open_seconds(self._now())

    def totals(self) -> dict[str, float]:
        """Seconds of every phase over all finished intervals."""
        with self._lock:
            return {name: spent / NANOSECONDS for name, spent in self._totals.items()}

    def recent_phases(self) -> dict[str, float]:
        """Seconds of every phase over the steps that `bound` looks at."""
        with self._lock:
            recent = list(self._recent)
        return {name: sum(step.phase_nanoseconds[name] for step in recent) / NANOSECONDS for name in PHASES}

    def bound(self) -> Bound:
        """Whether the most recent steps were bound by data or by computing."""
        with self._lock:
            recent = list(self._recent)
        total = sum(step.nanoseconds for step in recent)
        share = sum(step.phase_nanoseconds["data_wait"] for step in recent) / total if total else 0.0
        return bound_of(share, seconds=total / NANOSECONDS, steps=len(recent), data_bound_share=self._threshold)

    def _charge(self) -> None:
        """Give the time since the last change to the phase that ran."""
        spent = max(self._now() - self._mark, 0)
        self._interval[self._running] += spent
        self._mark += spent

    @property
    def _running(self) -> str:
        return self._open[-1] if self._open else "other"

    def _open_seconds(self, now: int) -> dict[str, float]:
        """Of the interval since the last finish; the caller holds the lock."""
        running = {self._running: self._interval[self._running] + max(now - self._mark, 0)}
        return self._seconds({**self._interval, **running})

    @staticmethod
    def _seconds(spent: Mapping[str, int]) -> dict[str, float]:
        return {name: nanoseconds / NANOSECONDS for name, nanoseconds in spent.items()}

    def _finish(self) -> StepTiming:
        """End the interval; the caller holds the lock."""
        self._charge()
        spent = self._interval
        self._interval = self._nothing()
        self._add(spent)
        return StepTiming(nanoseconds=sum(spent.values()), phase_nanoseconds=spent)

    @staticmethod
    def _nothing() -> dict[str, int]:
        return dict.fromkeys(PHASES, 0)

    def _add(self, spent: Mapping[str, int]) -> None:
        for name, nanoseconds in spent.items():
            self._totals[name] += nanoseconds

    def _count(self, timing: StepTiming) -> None:
        """Let a step count in `bound`; the caller holds the lock."""
        if self._first is None:
            self._first = timing
        elif self._recent and self._recent[0] is self._first:
            self._recent.clear()
        self._recent.append(timing)
