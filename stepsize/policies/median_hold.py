"""The study's own policy: hold the rate, re-set it once an interval to the median of a few estimates."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stepsize.estimate import Estimate
from stepsize.policies.horizon import SingleSteps
from stepsize.policies.rates import format_rate
from stepsize.pooling import COUNTED, median_rate


class MedianHold(SingleSteps):
    """Hold the rate; once an interval it becomes the median of those that `count` estimates suggest.

    The protocol of experiment 2 of Suckrow 2025 (see stepsize/README.md).

    Before `start` the schedule rules; the rate of step `start` is then held. Of every interval the first
    `count` steps are measured at constant rate, and the rate becomes the median of those that they suggest, if that is
    positive and finite (the midpoint of the two middle ones for an even count), else it stays.

    Outcomes: ok and ascent (with its negative rate) count. flat, nonfinite, stale and dropped do not, nor
    does a step that was never measured; measuring goes on until `count` have counted. A series still short
    after 2·`count` + `delay` steps, or when the next interval begins, is given up and the rate stays.

    `delay` is how many steps later the estimates come. A series then asks for `count` of them, and for one more
    where one of those has come and does not count; it is decided as the last one it needs comes, which may be in the
    next interval, if the delay is long: that one's steps, asked for meanwhile, are a series of their own, whatever
    rates they were taken at. If estimates come later than that, a few more steps than needed are measured; the first
    `count` to come decide.
    """

    def __init__(self, *, interval: int, count: int, start: int, delay: int = 0) -> None:
        self.interval, self.count, self.start, self.delay = interval, count, start, delay
        self._patience = min(2 * count + delay, interval)
        self._rate: float | None = None
        self._series = 0  # index of the interval that the estimates below belong to
        self._rates: list[float] = []
        self._counted: list[int] = []  # the place in its interval of each step that gave one of the rates, ascending
        self._failures: Counter[str] = Counter()
        self._decided = False

    def wants(self, step: int) -> bool:
        """Whether the series of `step`'s interval is still short of estimates."""
        series, place = divmod(step - self.start, self.interval)
        if series < 0 or place >= self._patience or (series == self._series and self._decided):
            return False
        return self._asked(place + 1, counted=self._counted if series == self._series else ())[place]

    def _asked(self, places: int, *, counted: Sequence[int]) -> list[bool]:
        """Which of the first `places` steps of a series are measured: those before which the estimates that count and
        the ones that may still come are too few.
        """
        asked: list[bool] = []
        coming = 0  # of the `delay` steps before
        for place in range(places):
            coming += asked[-1] if asked else 0
            coming -= asked[place - self.delay - 1] if place > self.delay else 0
            asked.append(bisect_left(counted, place - self.delay) + coming < self.count)
        return asked

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's before `start` (and while it is zero), the held rate from then on."""
        if step < self.start:
            return scheduled
        if self._rate is None and scheduled > 0:
            self._rate = scheduled
        return scheduled if self._rate is None else self._rate

    def observe(self, estimate: Estimate) -> str | None:
        """Count the estimate; sets the rate when the series is complete, gives up when it cannot be."""
        series, place = divmod(estimate.step - self.start, self.interval)
        said = None
        if series > self._series:
            if not self._decided and (self._rates or self._failures):
                said = self._give_up(self.start + series * self.interval + estimate.age)
            self._series, self._decided = series, False
            self._rates, self._counted, self._failures = [], [], Counter()
        if series < self._series or self._decided:
            return said
        if estimate.outcome in COUNTED and estimate.absolute is not None:
            self._rates.append(estimate.absolute)
            self._counted.append(place)
        else:
            self._failures[estimate.outcome.value] += 1
        after = estimate.step + estimate.age + 1
        if len(self._rates) == self.count:
            return self._decide(after)
        if not any(self._asked(self._patience, counted=self._counted)[place + 1 :]):
            return self._give_up(after)
        return said

    def _decide(self, step: int) -> str:
        self._decided = True
        median = median_rate(self._rates)
        negative = sum(rate <= 0 for rate in self._rates)
        source = f"median of {self.count} estimates, {negative} of them negative"
        if not 0 < median < math.inf:
            return f"step {step}: rate stays {format_rate(self._rate)} (the {source}, is {format_rate(median)})"
        before, self._rate = self._rate, median
        return f"step {step}: rate {format_rate(before)} → {format_rate(median)} ({source})"

    def _give_up(self, step: int) -> str:
        self._decided = True
        failures = ", ".join(f"{number} {outcome}" for outcome, number in sorted(self._failures.items()))
        return (
            f"step {step}: rate stays {format_rate(self._rate)} "
            f"({len(self._rates)} of {self.count} estimates gave a number{'; ' + failures if failures else ''})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Held rate and the series under way, as JSON values."""
        return {
            "rate": self._rate,
            "series": self._series,
            "rates": list(self._rates),
            "counted": list(self._counted),
            "failures": dict(self._failures),
            "decided": self._decided,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._rate, self._series, self._decided = state["rate"], state["series"], state["decided"]
        self._rates = list(state["rates"])
        self._counted = list(state.get("counted", [0] * len(self._rates)))  # earlier versions knew no delay
        self._failures = Counter(state["failures"])
