"""The step clock: where the wall time of a run goes, in phases that sum to it exactly."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ops.bound import DATA_BOUND_SHARE, PAUSES, Bound, bound_of

PHASES = (
    *("data_wait", "transfer", "forward", "backward", "optimizer", "alpha"),
    *("communication", "evaluation", "checkpoint", "other"),
)
"""Where time can go; `other` is whatever no phase claimed."""

NANOSECONDS = 1_000_000_000

_IN_PAUSES = "communication in pauses"
"""Within the clock that part of `communication`, which a verdict counts to the pauses."""
WINDOW_SECONDS = 300
"""A verdict is over the latest minutes, as many as the dashboards' and alerts' rates are."""
MARKS = 100
"""A window is told to about its hundredth part."""
LONG_WAIT_SECONDS = 10.0
"""A wait for the first rows of all is a verdict from then on; until then it is a beginning."""


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


@dataclass(frozen=True, kw_only=True)
class OpenPhase:
    """What the thread of the training loop is at, and for how many seconds: since it last began or ended a phase."""

    name: str
    seconds: float
    steps: int
    """Steps whose launch has ended by now."""
    since: int = 0
    """When that was, in nanoseconds of the clock: another number for another phase."""
    within: str = ""
    """The phase that `communication` is a part of; of any other phase itself."""


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
        window_seconds: float = WINDOW_SECONDS,
        data_bound_share: float = DATA_BOUND_SHARE,
        nanosecond_time: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """`bound` looks back over `window_seconds` of wall time, calls them data-bound from `data_bound_share` on.

        The share need not be near one half: with prefetching, a pipeline that keeps up is hardly
        waited for at all, so a wait that can be seen is a pipeline that cannot. The first step, which waits for the
        pipeline to fill and for compilation, and what was before it are left out once there is another step.
        """
        self._now = nanosecond_time
        self._threshold = data_bound_share
        self._lock = threading.Lock()
        self._open: list[str] = []
        self._interval, self._totals = self._nothing(), self._nothing()
        self._window = round(window_seconds * NANOSECONDS)
        self._marks: deque[tuple[int, dict[str, int]]] = deque()
        """When the totals since the first step stood at what, along the window and once before it."""
        self._left_out = 0
        """Of the interval that is open."""
        self._steps = 0
        self._first: StepTiming | None = None
        self._mark = self._now()
        self._host_phase: tuple[str, int, str] = ("other", self._mark, "other")
        """Phase of the loop's thread, since when, and within which; replaced as a whole."""
        self._ended_steps = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside to `name`, one of `PHASES`, except what an inner phase takes.

        Raises: ValueError for an unknown name.
        """
        if name not in PHASES:
            raise ValueError(f"phase {name!r} is not known; use one of {', '.join(PHASES)}")
        with self._noted(name):
            with self._lock:
                self._charge()
                paused = name == "communication" and not set(PAUSES).isdisjoint(self._open)
                self._open.append(_IN_PAUSES if paused else name)
            try:
                yield
            finally:
                with self._lock:
                    self._charge()
                    self._open.pop()

    def pause_phase(self, name: str) -> AbstractContextManager[None]:
        """As `phase`, for the host's own time while no step is on its way, whatever the phase is of a step."""
        return self.phase(name)

    def open_phase(self) -> OpenPhase:
        """What the loop's thread is at now, the host's view on any device; `other` outside of all phases."""
        name, since, within = self._host_phase
        seconds = max(self._now() - since, 0) / NANOSECONDS
        return OpenPhase(name=name, seconds=seconds, steps=self._ended_steps, since=since, within=within)

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """Within it `open_phase` is `name`."""
        before, _, within = self._host_phase
        self._host_phase = (name, self._now(), within if name == "communication" else name)
        try:
            yield
        finally:
            self._host_phase = (before, self._now(), within)

    @property
    def in_flight_steps(self) -> int:
        """How many steps later the time of a step is read: on the host, it is known when the step ends."""
        return 0

    def handed_over(self, wait: QueueWait | None) -> None:
        """The rows of the step are there; `wait` is a device's for their copy, which the host's clock doesn't see."""

    def abandon_step(self) -> None:
        """The wait for the rows of the step was given up before they came; the time of it stays `data_wait`."""

    def end_step(self) -> Callable[[], StepTiming]:
        """End the step, and give what reads its time, to be called in the order of the steps."""
        timing = self.finish_step()
        return lambda: timing

    def finish_step(self) -> StepTiming:
        """End the interval since the last finish as a step: it counts in `bound`."""
        with self._lock:
            timing = self._finish()
            self._count(timing)
        self._step_ended()
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
            return self._seconds(self._open_nanoseconds(self._now()))

    def totals(self) -> dict[str, float]:
        """Seconds of every phase over all finished intervals."""
        with self._lock:
            return self._seconds(self._totals)

    @property
    def steps(self) -> int:
        """Steps finished."""
        return self._steps

    def recent_phases(self) -> dict[str, float]:
        """Seconds of every phase over the wall time that `bound` looks at, the phase that is open now included."""
        with self._lock:
            return self._seconds(self._recent())

    def bound(self) -> Bound:
        """Whether the latest minutes were bound by data, by computing or by evaluations."""
        with self._lock:
            nanoseconds, steps = self._recent(), self._steps
        bound = bound_of(
            as_phases(nanoseconds),
            steps=steps,
            data_bound_share=self._threshold,
            communication_in_pauses=nanoseconds[_IN_PAUSES],
        )
        return replace(bound, seconds=bound.seconds / NANOSECONDS)

    def waiting_seconds(self) -> float:
        """How long the wait for rows that is open now has lasted; 0 if none is."""
        with self._lock:
            return self._open_wait(self._now()) / NANOSECONDS

    def leave_out(self, seconds: float) -> None:
        """Leave so much of the latest `data_wait` out of `bound`: a log that grows was waited for, not a reader."""
        spent = round(seconds * NANOSECONDS)
        with self._lock:
            self._left_out += spent
            self._marks = deque(
                (at + spent, {**totals, "data_wait": totals["data_wait"] + spent}) for at, totals in self._marks
            )

    def _step_ended(self) -> None:
        self._ended_steps += 1
        name, _, within = self._host_phase
        self._host_phase = (name, self._now(), within)

    def _charge(self) -> None:
        """Give the time since the last change to the phase that ran."""
        spent = max(self._now() - self._mark, 0)
        self._interval[self._running] += spent
        self._mark += spent

    @property
    def _running(self) -> str:
        return self._open[-1] if self._open else "other"

    def _open_nanoseconds(self, now: int) -> dict[str, int]:
        """Of the interval since the last finish; the caller holds the lock."""
        running = {self._running: self._interval[self._running] + max(now - self._mark, 0)}
        return {**self._interval, **running}

    def _recent(self) -> dict[str, int]:
        """Phases of the latest window, from the end of the first step on; the caller holds the lock.

        Between two marks time is taken to have passed evenly over what they differ by, which is exact of a long wait,
        evaluation or save.
        """
        if self._first is None:
            waiting = self._open_wait(self._now()) - self._left_out
            return self._nothing() | {"data_wait": waiting if waiting >= LONG_WAIT_SECONDS * NANOSECONDS else 0}
        totals = {name: self._totals[name] + spent for name, spent in self._open_nanoseconds(self._now()).items()}
        now = sum(totals.values())
        before = _at(now - self._window, [*self._marks, (now, totals)])
        first = self._first.phase_nanoseconds if self._steps == 1 else {}
        return {name: max(spent - before[name], 0) + first.get(name, 0) for name, spent in totals.items()}

    def _note(self) -> None:
        """Let the totals be remembered as they are now; the caller holds the lock."""
        at = sum(self._totals.values())
        if not self._marks or at - self._marks[-1][0] >= self._window // MARKS:
            self._marks.append((at, dict(self._totals)))
            while len(self._marks) > 1 and self._marks[1][0] <= at - self._window:
                self._marks.popleft()

    def _open_wait(self, now: int) -> int:
        """Nanoseconds of the wait for rows that is open now, 0 if none is; the caller holds the lock."""
        return self._interval["data_wait"] + max(now - self._mark, 0) if self._running == "data_wait" else 0

    @staticmethod
    def _seconds(spent: Mapping[str, int]) -> dict[str, float]:
        return {name: nanoseconds / NANOSECONDS for name, nanoseconds in as_phases(spent).items()}

    def _finish(self) -> StepTiming:
        """End the interval; the caller holds the lock."""
        self._charge()
        spent = self._interval
        self._interval, self._left_out = self._nothing(), 0
        self._add(spent)
        return StepTiming(nanoseconds=sum(spent.values()), phase_nanoseconds=as_phases(spent))

    @staticmethod
    def _nothing() -> dict[str, int]:
        return dict.fromkeys((*PHASES, _IN_PAUSES), 0)

    def _add(self, spent: Mapping[str, int]) -> None:
        for name, nanoseconds in spent.items():
            self._totals[name] += nanoseconds
        if self._first is not None:
            self._note()

    def _count(self, timing: StepTiming) -> None:
        """Count a step, whose time has been added; the caller holds the lock."""
        self._steps += 1
        if self._first is None:
            self._first = timing
            self._note()


def as_phases(spent: Mapping[str, int]) -> dict[str, int]:
    """What the clock keeps, as `PHASES`."""
    told = {name: spent[name] for name in PHASES}
    told["communication"] += spent[_IN_PAUSES]
    return told


def _at(moment: int, marks: list[tuple[int, dict[str, int]]]) -> dict[str, int]:
    """What the totals were at `moment`, between the marks on either side of it; the first of them if it is earlier."""
    earlier = marks[0]
    for later in marks:
        if later[0] > moment:
            if later is earlier:
                break
            share = (moment - earlier[0]) / (later[0] - earlier[0])
            return {name: spent + round(share * (later[1][name] - spent)) for name, spent in earlier[1].items()}
        earlier = later
    return earlier[1]
