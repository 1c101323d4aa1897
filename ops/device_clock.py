"""The step clock of a device that runs behind the host: marks in its queue of work, read once they have passed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ops.device_time import DeviceStep, Span, phases_of, shared
from ops.step_clock import PHASES, QueueWait, StepClock, StepTiming, as_phases

IN_FLIGHT_STEPS = 2
"""The host is this many steps ahead of the device at most: so late a step is read, and waited for if need be."""
QUEUED_PHASES = ("forward", "backward", "optimizer", "alpha", "communication")
"""Phases whose work the host queues; what the host does in the others, it does itself."""


class Marker(Protocol):
    """Marks in the queue of a device (CUDA: timing events on a stream). Only `wait` makes the host wait."""

    def mark(self) -> Any:
        """A mark behind all that is queued so far."""

    def wait(self, mark: Any) -> None:
        """Waits, without spinning, until `mark` has passed."""

    def done(self, mark: Any) -> bool:
        """Whether `mark` has passed."""
        ...

    def nanoseconds(self, earlier: Any, later: Any) -> int:
        """The device's time between two marks that have passed."""
        ...


@dataclass(kw_only=True)
class _Marks:
    """What is noted of a step until it can be read."""

    waits: list[Span] = field(default_factory=list)
    talks: list[Span] = field(default_factory=list)
    began_at: int = 0
    marks: list[Any] = field(default_factory=list)
    """The first mark, then one at the end of every part."""
    parts: list[str] = field(default_factory=list)
    """The phase of each part."""


class DeviceClock(StepClock):
    """A `StepClock` whose steps are timed by the device: the phases of `ops.device_time`.

    The time of a step goes from its predecessor's end on the device to its own. It is known some steps later, when its
    last mark has passed; nothing waits for a mark but the reading of a step, which the loop does `in_flight_steps`
    later. That wait is no phase: the device is working meanwhile.

    Reading the last step in flight is a drain. What the host needed from the device's end until it knew of it
    belongs to that step: as `alpha` where the host waited for α*, as `other` the rest. So steps end where the pause
    after them begins, which the host's clock times, as it does the start-up; the first step after a pause begins where
    that ended. All together sums to wall time, up to the difference in speed of the two clocks while steps are in
    flight, which is corrected at each drain: time that the device counted too much is missing in the next pause.

    `communication` within a step is the device's as any phase of it: from the mark before an exchange to the one behind
    it, so with what it waited for other ranks. Between steps it is what the device stood still for while the host
    waited for other ranks.

    Before a step's first phase and behind its last one, `other`; between two phases, the one that follows.
    """

    def __init__(self, marker: Marker, **settings: Any) -> None:
        """`settings` as those of `StepClock`."""
        super().__init__(**settings)
        self._marker = marker
        self._step: _Marks | None = None
        self._unread: deque[_Marks] = deque()
        self._last: Any = None
        """The end of the last step that was read, as a mark; None after a pause."""
        self._given_up: list[Span] = []
        """When the host waited for rows of steps that were abandoned."""
        self._talks: list[Span] = []
        """When the host waited for other ranks, since the last step began."""
        self._drains: list[Span] = []
        """When the host waited for α* between steps."""
        self._waits_since: int | None = None
        """Since when the host has been waiting for rows or α*."""

    @property
    def in_flight_steps(self) -> int:
        return IN_FLIGHT_STEPS

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """As `StepClock.phase`; for a phase of the device, marks its end; its beginning if an inner or the first one.

        Raises: ValueError for an unknown name.
        """
        noted = name == "data_wait" or (name == "communication" and not self._open)
        if name not in PHASES or not (noted or self._step or self._unread):
            with super().phase(name):
                yield
        elif name == "data_wait":
            with self._noted(name), self._waiting(self._begun().waits):
                yield
        elif name == "communication" and (self._step is None or not self._step.marks):
            talks = self._talks if self._step is None else self._step.talks
            if self._waits_since is not None:  # within the wait for rows or α*, part of that
                talks = []
            with self._noted(name), self._spanned(talks):
                yield
        elif self._step is None:
            assert name == "alpha", f"{name} begins with steps in flight"
            with self._noted(name), self._waiting(self._drains):
                yield
        else:
            assert name in QUEUED_PHASES, f"{name} begins within a step"
            with self._noted(name), self._queued(name):
                yield

    def pause_phase(self, name: str) -> AbstractContextManager[None]:
        assert self._step is None and not self._unread, "a pause begins when all steps are read"  # noqa: PT018
        return super().phase(name)

    def handed_over(self, wait: QueueWait | None) -> None:
        """The rows of the step are there, for the device behind `wait`; None: they were complete already."""
        step = self._begun()
        assert not step.marks, "a step has one pair"
        if wait is None:
            step.began_at = self._now()
            step.marks.append(self._marker.mark())
        else:
            step.began_at = wait.began_at
            step.marks += (wait.began, wait.ended)
            step.parts.append("transfer")

    def abandon_step(self) -> None:
        """As `StepClock.abandon_step`: what the device stood still for is `data_wait` of the last step in flight, or
        of the pause that comes, or of the next step if there is one first.
        """
        step, self._step = self._step, None
        if step is not None:
            assert not step.marks, "a step with rows is not given up"
            self._given_up += step.waits
            self._talks = step.talks

    def end_step(self) -> Callable[[], StepTiming]:
        """Marks the step's end; gives what waits for the device to get there and reads the step, first in first out."""
        step = self._step
        assert step is not None, "a step begins with its rows"
        self._part(step, "other")
        self._step = None
        with self._lock:
            self._unread.append(step)
        self._step_ended()
        return lambda: self._read(step)

    def finish_step(self) -> StepTiming:
        """Marks the step's end and waits for it."""
        return self.end_step()()

    def finish_outside(self) -> StepTiming:
        assert not self._unread, "a pause begins when all steps are read"
        with self._lock:
            self._charge()
            self._move_noted((0, self._mark), self._interval)
        return super().finish_outside()

    def _open_nanoseconds(self, now: int) -> dict[str, int]:
        """As `StepClock`'s; while steps are in flight, of those that the device is through with, and of its waiting for
        rows since.
        """
        if not self._unread and self._step is None:
            return super()._open_nanoseconds(now)
        return self._passed(now)

    def _begun(self) -> _Marks:
        if self._step is None:
            self._step = _Marks(waits=self._given_up, talks=self._talks)
            self._given_up, self._talks = [], []
        return self._step

    @contextmanager
    def _waiting(self, waits: list[Span]) -> Iterator[None]:
        self._waits_since = self._now()
        try:
            with self._spanned(waits):
                yield
        finally:
            self._waits_since = None

    @contextmanager
    def _spanned(self, spans: list[Span]) -> Iterator[None]:
        began = self._now()
        try:
            yield
        finally:
            spans.append((began, self._now()))

    @contextmanager
    def _queued(self, name: str) -> Iterator[None]:
        step = self._begun()
        assert step.marks, "a step begins with its rows"
        if self._open or step.parts in ([], ["transfer"]):
            self._part(step, self._open[-1] if self._open else "other")
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            self._part(step, name)

    def _part(self, step: _Marks, name: str) -> None:
        step.marks.append(self._marker.mark())
        step.parts.append(name)

    def _read(self, step: _Marks) -> StepTiming:
        """The phases of the oldest step in flight, once the device is through with it."""
        self._marker.wait(step.marks[-1])
        with self._lock:
            assert self._unread[0] is step, "steps are read in their order"
            self._unread.popleft()
            spent = self._phases(step, last=self._last, line=self._mark)
            self._last = step.marks[-1]
            self._mark += sum(spent.values())
            if not self._unread and self._step is None:
                self._settle(spent)
            self._add(spent)
            timing = StepTiming(nanoseconds=sum(spent.values()), phase_nanoseconds=as_phases(spent))
            self._count(timing)
        return timing

    def _phases(self, step: _Marks, *, last: Any, line: int) -> dict[str, int]:
        """Of a step that the device is through with, behind the mark `last`, or behind a pause that ended at `line`."""
        elapsed = [self._marker.nanoseconds(a, b) for a, b in zip(step.marks, step.marks[1:], strict=False)]
        work = [(name, spent) for name, spent in zip(step.parts, elapsed, strict=True) if name != "transfer"]
        gap = step.began_at - line if last is None else self._marker.nanoseconds(last, step.marks[0])
        spent = phases_of(
            DeviceStep(
                gap=max(gap, 0),
                began_at=step.began_at,
                waits=step.waits,
                talks=step.talks,
                transfer=sum(elapsed) - sum(nanoseconds for _, nanoseconds in work),
                work=work,
            )
        )
        return self._nothing() | spent

    def _settle(self, spent: dict[str, int]) -> None:
        """Gives the last step in flight the time from its end on the device until now."""
        rest = self._now() - self._mark
        if rest > 0:
            waited = shared((self._mark, self._mark + rest), self._drains)
            spent["alpha"] += waited
            spent["other"] += rest - waited
            self._move_noted((self._mark, self._mark + rest), spent)
            self._mark += rest
        self._last, self._drains = None, []

    def _open_wait(self, now: int) -> int:
        if self._waits_since is None:
            return super()._open_wait(now)
        return self._passed(now)["data_wait"]

    def _move_noted(self, span: Span, spent: dict[str, int]) -> None:
        """Gives to `data_wait` what of `span`, counted as `other`, passed in waiting for rows that did not come, and to
        `communication` what passed in waiting for other ranks.
        """
        for name, spans in (("data_wait", self._given_up), ("communication", self._talks)):
            waited = min(shared(span, spans), spent["other"])
            spent[name] += waited
            spent["other"] -= waited
        self._given_up, self._talks = [], []

    def _passed(self, now: int) -> dict[str, int]:
        """Phases of the steps in flight that the device is through with, and of its waiting for rows after them."""
        spent, line, last = self._nothing(), self._mark, self._last
        for step in self._unread:
            if not self._marker.done(step.marks[-1]):
                return spent
            for name, nanoseconds in self._phases(step, last=last, line=line).items():
                spent[name] += nanoseconds
                line += nanoseconds
            last = step.marks[-1]
        since = self._waits_since
        if since is not None and self._step is not None and not self._step.marks:
            spent["data_wait"] += max(now - max(line, since), 0)
        return spent
