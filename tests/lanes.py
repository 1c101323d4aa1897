"""A lane that lags: its measurements are done some steps after they were submitted, as on a device, without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

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
