"""Lanes that lag, as a device does, without one: done some steps after they were submitted, or begun only then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stepsize.measuring import Pending, Quantities
from stepsize.measuring.handoff import Inline


def random_lags(most: int, *, seed: int) -> Callable[[], int]:
    """Draws of 0 to `most` steps."""
    draw = Random(seed)
    return lambda: draw.randint(0, most)


class LaggingLane:
    """Does the work at once and shows its numbers only so many `tick`s later, or when it is waited for.

    Until then the numbers are NaN, for who reads them too early. First in first out: nothing is done before what was
    submitted earlier, and to wait for one is to wait for all before it. `waits` has the tick of every wait that had to
    wait.
    """

    def __init__(self, lag: int | Callable[[], int]) -> None:
        self.lag = lag
        self._now = self._submitted = self._waited_for = self._latest = 0
        self.waits: list[int] = []
        self.most_in_flight = 0
        self._open: list[Callable[[], bool]] = []

    def tick(self) -> None:
        """A step passes."""
        self._now += 1

    def submit(self, work: Callable[[], Quantities], uses: Iterable[Tensor]) -> Pending:
        made = Inline().submit(work, uses)
        values = torch.full_like(made.values, torch.nan)
        self._submitted += 1
        number = self._submitted
        lag = self.lag if isinstance(self.lag, int) else self.lag()
        self._latest = ready = max(self._latest, self._now + lag)

        def done() -> bool:
            if self._now < ready and number > self._waited_for:
                return False
            values.copy_(made.values)
            return True

        def wait() -> None:
            if done():
                return
            self.waits.append(self._now)
            self._waited_for = number
            done()

        self._open = [one for one in [*self._open, done] if not one()]
        self.most_in_flight = max(self.most_in_flight, len(self._open))
        return Pending(sizes=made.sizes, values=values, done=done, wait=wait)


@dataclass
class _Later:
    """What has been submitted and is worked on later, as a Pending."""

    work: Callable[[], Quantities] | None
    made: Pending | None = None

    def done(self) -> bool:
        return self.made is not None

    def run(self) -> None:
        if self.work is not None:
            self.made, self.work = Inline().submit(self.work, ()), None

    def read(self) -> dict[str, list[float]]:
        assert self.made is not None
        return self.made.read()


class DeferredLane:
    """Begins each work only so many `tick`s after it was submitted, or when it is waited for, first in first out.

    By then training has gone on, so whatever the work reads of training's shows in its numbers.
    """

    def __init__(self, lag: int) -> None:
        self.lag = lag
        self._now = 0
        self._waiting: deque[tuple[int, _Later]] = deque()

    def tick(self) -> None:
        """A step passes."""
        self._now += 1
        while self._waiting and self._waiting[0][0] <= self._now:
            self._waiting.popleft()[1].run()

    def submit(self, work: Callable[[], Quantities], uses: Iterable[Tensor]) -> Pending:
        later = _Later(work)
        self._waiting.append((self._now + self.lag, later))

        def wait() -> None:
            while not later.done():
                self._waiting.popleft()[1].run()

        pending: Any = SimpleNamespace(done=later.done, wait=wait, read=later.read)
        return pending
