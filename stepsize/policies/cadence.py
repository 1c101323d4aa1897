"""Which steps a policy that follows estimates wants measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """All of the first interval, then the first `count` of every interval of `interval` steps, from `start` on."""

    interval: int
    count: int
    start: int

    def wants(self, step: int) -> bool:
        """Whether `step` is to be measured."""
        since = step - self.start
        return 0 <= since < self.interval or (since >= 0 and since % self.interval < self.count)
