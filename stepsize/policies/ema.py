"""`ema`: the rate follows the ratio of exponential averages of many estimates."""

from __future__ import annotations

from typing import Any

from stepsize.estimate import Estimate
from stepsize.policies.cadence import Cadence
from stepsize.policies.evidence import Repeats
from stepsize.policies.horizon import SingleSteps
from stepsize.policies.rates import Bounds, format_rate, moved
from stepsize.pooling import RatioSums, per_rate


class Ema(SingleSteps):
    """The ratio of exponential averages, η = −EMA(dᵀg/η) / EMA(dᵀGd/η²), the first idea for future work of
    Suckrow 2025 (see stepsize/README.md).

    Before `start` the schedule rules, from then on the ratio does, beginning at the rate of step `start`.
    Each estimate moves the rate by at most `clip` either way. A ratio that is not positive leaves the rate
    as it is. Outcomes: ok and ascent are averaged; flat, nonfinite, stale and dropped change nothing,
    nor do ascents in a row after the tenth.
    """

    def __init__(
        self,
        *,
        cadence: Cadence,
        bounds: Bounds = Bounds(),  # noqa: B008 (frozen)
        pooling: int = 100,
        clip: float = 1.25,
    ) -> None:
        """The averages reach back over about `pooling` estimates."""
        self.cadence, self.bounds, self.clip = cadence, bounds, clip
        self._sums = RatioSums(decay=1.0 - 1.0 / pooling)
        self._rate: float | None = None
        self._said: float | None = None
        self._repeats = Repeats()

    def wants(self, step: int) -> bool:
        """Every step of the first interval, then the first `count` of every interval."""
        return self.cadence.wants(step)

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's before `start` (and while it is zero), then the followed rate."""
        if step < self.cadence.start:
            return scheduled
        if self._rate is None and scheduled > 0:
            self._rate = self._said = self.bounds.clamp(scheduled)
        return scheduled if self._rate is None else self._rate

    def observe(self, estimate: Estimate) -> str | None:
        """Average it in and move the rate towards the ratio; says so when the rate has moved by half, and of what
        comes again and again.
        """
        if self._rate is None or estimate.step < self.cadence.start:
            return None
        self._repeats.add(estimate)
        decided = None if self._repeats.too_many_ascents else self._follow(estimate)
        return self._repeats.with_warning(decided, estimate, self._rate)

    def _follow(self, estimate: Estimate) -> str | None:
        pair = per_rate(estimate)
        if pair is None or self._rate is None:
            return None
        self._sums.add(*pair)
        pooled = self._sums.pooled()
        if pooled is None or pooled.rate <= 0:
            return None
        self._rate = self.bounds.clamp(min(max(pooled.rate, self._rate / self.clip), self._rate * self.clip))
        if not moved(self._said, self._rate):
            return None
        before, self._said = self._said, self._rate
        after = estimate.step + estimate.age + 1
        source = f"ratio of averages {format_rate(pooled.rate)}, worth {pooled.effective_count:.0f} estimates"
        return f"step {after}: rate {format_rate(before)} → {format_rate(self._rate)} ({source})"

    def state_dict(self) -> dict[str, Any]:
        """Averages and rate, as JSON values."""
        return {
            "sums": self._sums.state_dict(),
            "rate": self._rate,
            "said": self._said,
            "repeats": self._repeats.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._sums.load_state_dict(state["sums"])
        self._rate, self._said = state["rate"], state["said"]
        self._repeats.load_state_dict(state.get("repeats"))
