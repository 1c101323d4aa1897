"""The study's own policy: hold the rate, re-set it once an interval to the median of a few estimates."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from stepsize.estimate import Estimate
from stepsize.policies.rates import format_rate
from stepsize.pooling import COUNTED, median_rate


class MedianHold:
    """Hold the rate; once an interval it becomes the median of those that `count` estimates suggest.

    The protocol of experiment 2 of Suckrow 2025 (see stepsize/README.md).

    Before `start` the schedule rules; the rate of step `start` is then held. Of every interval the first
    `count` steps are measured at constant rate, and the rate becomes the median of those that they suggest, if that is
    positive and finite (the midpoint of the two middle ones for an even count), else it stays.

    Outcomes: ok and ascent (with its negative rate) count. flat, nonfinite, stale and dropped do not, nor
    does a step that was never measured; measuring goes on until `count` have counted. A series still short
    after 2·`count` steps, or when the next interval begins, is given up and the rate stays. If estimates
    arrive late a few more steps than needed are measured; the first `count` to arrive decide.
    """

    def __init__(self, *, interval: int, count: int, start: int) -> None:
        self.interval, self.count, self.start = interval, count, start
        self._patience = min(2 * count, interval)
        self._rate: float | None = None
        self._series = 0  # index of the interval that the estimates below belong to
        self._rates: list[float] = []
        self._failures: Counter[str] = Counter()
        self._decided = False

    def wants(self, step: int) -> bool:
        """Whether the series of `step`'s interval is still short of estimates."""
        series, offset = divmod(step - self.start, self.interval)
        return series >= 0 and offset < self._patience and not (series == self._series and self._decided)

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's before `start` (and while it is zero), the held rate from then on."""
        if step < self.start:
            return scheduled
        if self._rate is None and scheduled > 0:
            self._rate = scheduled
        return scheduled if self._rate is None else self._rate

    def observe(self, estimate: Estimate) -> str | None:
        """Count the estimate; sets the rate when the series is complete, gives up when it cannot be."""
        series, offset = divmod(estimate.step - self.start, self.interval)
        said = None
        if series > self._series:
            if not self._decided and (self._rates or self._failures):
                said = self._give_up(self.start + series * self.interval)
            self._series, self._decided = series, False
            self._rates, self._failures = [], Counter()
        if series < self._series or self._decided:
            return said
        if estimate.outcome in COUNTED and estimate.absolute is not None:
            self._rates.append(estimate.absolute)
        else:
            self._failures[estimate.outcome.value] += 1
        after = estimate.step + estimate.age + 1
        if len(self._rates) == self.count:
            return self._decide(after)
        if offset == self._patience - 1:
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
            "failures": dict(self._failures),
            "decided": self._decided,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._rate, self._series, self._decided = state["rate"], state["series"], state["decided"]
        self._rates = list(state["rates"])
        self._failures = Counter(state["failures"])
