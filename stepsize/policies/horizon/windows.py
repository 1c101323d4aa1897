"""Which snapshots a run keeps and when it measures since which of them: its length alone decides."""

from __future__ import annotations

import math
from typing import Any

from stepsize.policies.horizon.plan import HorizonPlan

FIRST_SNAPSHOT = 16
"""Steps since the search before the first snapshot."""
FIRST_HORIZON = 8
"""Least K of the first series, for it to see more than single steps do of what momentum goes on with."""
FIRST_SERIES = FIRST_SNAPSHOT + FIRST_HORIZON
"""Steps since the search before the first series; until then they are measured one by one."""
SHARE = 0.28
"""K as a share of the steps since the search."""
RATIO = 1.18
"""From the step of one snapshot to that of the next."""
EVERY = 1 / 16
"""From one series of measurements to the next, as a share of the steps since the search."""
EVENLY = 50
"""Steps up to which that share is the same; then it grows as their root, up to that of K itself, so that measuring is
a small part of a long run."""
LONGEST_GAP = 6250
"""Steps from one series to the next at most, so that what changes is seen within so many, in a run without an end too.
"""
MOST_STEPS = 100_000
"""Steps beyond which a run without an end plans as if it had made so many: K is up to 28,000 of them."""


class HorizonWindows:
    """Keeps snapshots at steps of a geometric sequence, and begins series of measurements, ever further apart.

    t counts the steps since the search. A series that begins at t is measured from the first snapshot after t − K,
    K = 0.28 t, or the newest; the first, at t = 24, from that of t = 16. The next begins t/16 steps
    later, from t = 50 on t/16 · √(t/50), from 1,000 on 0.28 t, a whole K, and from 22,300 on 6,250; or t/16 steps later
    after all, by `hasten`. At most three snapshots are kept at a time.
    With `endless`, t is taken for no more than 100,000 in all this, so that K stays bounded.
    """

    def __init__(self, *, endless: bool) -> None:
        self.endless = endless
        self._kept: dict[int, float] = {}  # t of every snapshot, oldest first, and the sum of the rates up to it
        self._sum = 0.0  # of the rates of all steps
        self._next = FIRST_SERIES
        self.mean_rate = 0.0
        """Of the steps from the snapshot of the latest series to its beginning."""
        self._series = (0, 0)  # since which snapshot, and until when, the latest series is measured

    def plan(self, t: int, *, rate: float, wished: int) -> HorizonPlan:
        """What to do after t steps, of which the latest had `rate`; the plan's steps are such t as well.

        A series that begins has as many measurements as `wished`, if there is time for them before the next.
        """
        self._sum += rate
        if self._kept and t >= self._next:
            gap = self._gap(t)
            since = self._snapshot_for(t)
            self._series = (since, t + min(max(wished, 1), gap) - 1)
            self.mean_rate = (self._sum - self._kept[since]) / (t - since)
            self._next = t + gap
        since = self._series[0] if t <= self._series[1] else None
        forget = self._outlived(t)
        for old in forget:
            del self._kept[old]
        keep = t >= FIRST_SNAPSHOT and (not self._kept or t - self._newest >= (RATIO - 1) * self.bounded(self._newest))
        if keep:
            if not self._kept and t > FIRST_SNAPSHOT:  # begun, or begun again, in the middle of a run
                self._next = t + max(FIRST_HORIZON, self._gap(t))
            self._kept[t] = self._sum
        return HorizonPlan(since=since, keep=keep, forget=forget)

    def bounded(self, t: int) -> int:
        """t, or what it is taken for in a run without an end."""
        return min(t, MOST_STEPS) if self.endless else t

    @property
    def series_end(self) -> int:
        """The t of the last measurement of the latest series."""
        return self._series[1]

    def hasten(self) -> None:
        """Begin the next series a sixteenth after the latest: that one told nothing, or that something is wrong."""
        self._next = min(self._next, self._soonest)

    def clear(self) -> HorizonPlan:
        """Forget every snapshot, for good."""
        forget = tuple(self._kept)
        self._kept, self._series = {}, (0, 0)
        return HorizonPlan(forget=forget)

    @property
    def _newest(self) -> int:
        return next(reversed(self._kept))

    @property
    def _soonest(self) -> int:
        latest = self.series_end
        return latest + max(1, min(int(EVERY * latest), LONGEST_GAP))

    def _gap(self, t: int) -> int:
        share = min(SHARE, EVERY * max(1.0, math.sqrt(t / EVENLY)))
        return min(max(1, int(share * t)), LONGEST_GAP)

    def _earliest_for(self, t: int) -> int:
        return t - max(1, min(round(SHARE * self.bounded(t)), t - FIRST_SNAPSHOT)) - 1

    def _snapshot_for(self, t: int) -> int:
        earliest = self._earliest_for(t)
        return next((kept for kept in self._kept if kept >= earliest), self._newest)

    def _outlived(self, t: int) -> tuple[int, ...]:
        """The snapshots that neither this series nor a later one is measured from."""
        in_use = {self._series[0]} if t < self._series[1] else set[int]()
        earliest = self._earliest_for(max(t + 1, min(self._next, self._soonest)))
        return tuple(kept for kept in self._kept if kept < min(earliest, self._newest) and kept not in in_use)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        kept = [[t, total] for t, total in self._kept.items()]
        series = {"series": list(self._series), "rate": self.mean_rate}
        return {"kept": kept, "sum": self._sum, "next": self._next, **series}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._kept = {int(t): float(total) for t, total in state["kept"]}
        self._sum, self._next = float(state["sum"]), int(state["next"])
        first, last = state["series"]
        self._series, self.mean_rate = (int(first), int(last)), float(state["rate"])
