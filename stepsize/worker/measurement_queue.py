"""Measurements from the lane to the caller, first in first out: in flight → finished → due → handed over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stepsize.errors import MeasurementError
from stepsize.estimate import Estimate
from stepsize.measuring import Pending

MakeEstimate = Callable[[dict[str, list[float]]], Estimate]
"""The quantities of a measurement, as floats, to its estimate."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """An estimate that has not been handed over."""

    estimate: Estimate
    due: int | None
    """The step at which it is handed over; None: as soon as somebody asks."""


@dataclass(frozen=True, kw_only=True)
class _InFlight:
    pending: Pending
    make_estimate: MakeEstimate
    due: int | None
    occupies: bool


class MeasurementQueue:
    """Hands estimates over in the order in which their measurements were put in.

    Without a `delay`: as soon as they have finished; one measurement in flight fills the queue.
    With one: the estimate of step s at the first `take` of step s + delay or later, and never before, however early
    it finished; if it is late, the host waits for it there. The queue has room for delay + 1 in flight.
    """

    def __init__(self, delay: int | None = None, *, on_time: bool = False) -> None:
        """`on_time`: a measurement that has finished early is not looked at before it is due either."""
        self.delay, self._on_time = delay, on_time
        self._in_flight: deque[_InFlight] = deque()
        self._finished: deque[Finished] = deque()

    def make_room(self) -> bool:
        """Whether one more measurement may be put in. With a delay always: the host waits for the oldest if it must."""
        if self.delay is None:
            self._collect()
            return not any(one.occupies for one in self._in_flight)
        while len(self._in_flight) > self.delay:
            self._finish_oldest()
        return True

    def put(self, step: int, pending: Pending, make_estimate: MakeEstimate, *, occupies: bool = True) -> None:
        """Take in the measurement of `step`; one that does not occupy the queue leaves room for another."""
        entry = _InFlight(pending=pending, make_estimate=make_estimate, due=self._due(step), occupies=occupies)
        self._in_flight.append(entry)

    def put_finished(self, estimate: Estimate) -> None:
        """Take in an estimate that nothing has to be measured for, behind those that have finished."""
        self._finished.append(Finished(estimate=estimate, due=self._due(estimate.step)))

    def take(self, step: int | None = None) -> list[Estimate]:
        """The estimates to be handed over at `step`, which a delay needs, in their order."""
        self._collect()
        while self.delay is not None and self._in_flight and _is_due(self._in_flight[0].due, step):
            self._finish_oldest()
        taken = []
        while self._finished and _is_due(self._finished[0].due, step):
            taken.append(self._finished.popleft().estimate)
        return taken

    def take_all(self) -> list[Estimate]:
        """Every estimate, due or not, once it has finished."""
        taken = [one.estimate for one in self.undelivered()]
        self._finished.clear()
        return taken

    def wait(self) -> None:
        """Until nothing is in flight."""
        while self._in_flight:
            self._finish_oldest()

    def undelivered(self) -> list[Finished]:
        """All that has not been handed over, once it has finished."""
        self.wait()
        return list(self._finished)

    def restore(self, undelivered: Iterable[Finished]) -> None:
        """Hold `undelivered`, and nothing else."""
        self.clear()
        self._finished.extend(undelivered)

    def clear(self) -> None:
        """Wait for what is in flight and forget everything."""
        for one in self._in_flight:
            one.pending.wait()
        self._in_flight.clear()
        self._finished.clear()

    def _due(self, step: int) -> int | None:
        return None if self.delay is None else step + self.delay

    def _collect(self) -> None:
        while not self._on_time and self._in_flight and self._in_flight[0].pending.done():
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        one = self._in_flight.popleft()
        if not one.pending.done():
            one.pending.wait()
        self._finished.append(Finished(estimate=one.make_estimate(one.pending.read()), due=one.due))


def _is_due(due: int | None, step: int | None) -> bool:
    return due is None or (step is not None and due <= step)


def refuse_delay(delay: int | None, max_age: int | None) -> None:
    """Raises MeasurementError for a delay that is negative, or at which every estimate would be STALE."""
    if delay is None:
        return
    if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
        raise MeasurementError(f"delay: {delay!r} is no number of steps; give 0 or more, or None to hand over at once")
    if max_age is not None and delay > max_age:
        raise MeasurementError(
            f"delay: after {delay} steps every estimate would be older than max_age = {max_age} allows; give a delay "
            f"of at most {max_age}, or no max_age"
        )
