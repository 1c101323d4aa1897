"""A device that works through its queue behind the host, in made-up time: what a `DeviceClock` can be driven with."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

MILLISECOND = 1_000_000
ANOTHER_ZERO = 10**15
"""The device's clock shows this much more than the host's."""


@dataclass(frozen=True)
class Mark:
    """A point in the queue, and the device's time at which it passes."""

    at: int


@dataclass(frozen=True, kw_only=True)
class Wait:
    """The queue waiting for a copy, as `pipeline.device.StreamWait`."""

    began: Mark
    ended: Mark
    began_at: int


@dataclass
class LaggingDevice:
    """A `Marker` over a queue whose work takes the time that is said when it is queued."""

    now: int = 0
    """The host's time."""
    free_at: int = 0
    """When the device is through with its queue, on the host's clock."""
    waited_for: list[Mark] = field(default_factory=list)
    """The marks that the host waited for."""
    dry: list[tuple[int, int]] = field(default_factory=list)
    """When the device had nothing to do, on the host's clock."""

    def time(self) -> int:
        return self.now

    def queue(self, nanoseconds: int) -> None:
        if self.free_at < self.now:
            self.dry.append((self.free_at, self.now))
        self.free_at = max(self.free_at, self.now) + nanoseconds

    def mark(self) -> Mark:
        self.queue(0)
        return Mark(self.free_at + ANOTHER_ZERO)

    def wait_until(self, host_time: int) -> Wait:
        """Lets the queue wait for what is there at `host_time`."""
        began_at, began = self.now, self.mark()
        self.free_at = max(self.free_at, host_time)
        return Wait(began=began, ended=self.mark(), began_at=began_at)

    def wait(self, mark: Mark) -> None:
        self.waited_for.append(mark)
        self.now = max(self.now, mark.at - ANOTHER_ZERO)

    def done(self, mark: Mark) -> bool:
        return mark.at - ANOTHER_ZERO <= self.now

    def nanoseconds(self, earlier: Mark, later: Mark) -> int:
        assert self.done(earlier), "read before it has passed"
        assert self.done(later), "read before it has passed"
        return later.at - earlier.at


@dataclass
class PacedFeed:
    """Pairs of a loader of one thread that makes one in `period` and is at most `ahead` of the trainer.

    The copy of each ends `copy` after it is handed out, at the earliest.
    """

    device: LaggingDevice
    period: int
    ahead: int = 2
    copy: int | None = None
    """None: complete when it is handed out."""
    last_wait: Wait | None = None
    first_at: int = 0
    """How much longer the first takes."""
    waits: list[tuple[int, int]] = field(default_factory=list)
    """From when to when the host waited for a pair."""
    _ready: list[int] = field(default_factory=list)
    _taken: list[int] = field(default_factory=list)

    def __next__(self) -> Any:
        made = len(self._ready)
        begun = self._ready[-1] if made else self.device.now + self.first_at
        if made >= self.ahead:
            begun = max(begun, self._taken[made - self.ahead])
        self._ready.append(begun + self.period)
        asked = self.device.now
        self.device.now = max(self.device.now, self._ready[-1])
        self._taken.append(self.device.now)
        self.waits.append((asked, self.device.now))
        self.last_wait = None if self.copy is None else self.device.wait_until(self.device.now + self.copy)
        return SimpleNamespace(fresh=False, rows=4, epoch=0, start=0)
