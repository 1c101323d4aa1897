"""Whether a quantity of a long run stays where it is: the middle of its last third against that of its first."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WARM_UP = 0.1
"""Share of the run left out at its beginning: caches fill, code is compiled, curves grow to their bound."""


@dataclass(frozen=True, kw_only=True)
class Flatness:
    """What a quantity did over the run, less its warm-up."""

    name: str
    first: float
    """Median of the first third."""
    last: float
    """Median of the last third."""
    per_hour: float
    """Slope of the line between the two."""
    allowed: float
    """It may have grown so much from `first` to `last`."""

    @property
    def flat(self) -> bool:
        return self.last - self.first <= self.allowed


def flatness(
    name: str, seconds: Sequence[float], values: Sequence[float], *, allowed: float, allowed_share: float = 0.0
) -> Flatness:
    """The judgement of `values` taken at `seconds`; it may grow by `allowed` and by a share of where it began.

    Medians of thirds, since memory comes and goes with every evaluation and save.

    Raises: ValueError if fewer than nine values are left behind the warm-up.
    """
    begin = seconds[0] + WARM_UP * (seconds[-1] - seconds[0])
    kept = [(time, value) for time, value in zip(seconds, values, strict=True) if time >= begin]
    if len(kept) < 9:
        raise ValueError(f"{len(kept)} samples are too few to judge {name}; run longer, or sample more often")
    third = len(kept) // 3
    early, late = kept[:third], kept[-third:]
    first, last = (statistics.median(value for _, value in part) for part in (early, late))
    hours = (statistics.median(time for time, _ in late) - statistics.median(time for time, _ in early)) / 3600
    return Flatness(
        name=name,
        first=first,
        last=last,
        per_hour=(last - first) / hours,
        allowed=allowed + allowed_share * first,
    )
