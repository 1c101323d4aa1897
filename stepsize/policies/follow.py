"""Policies that leave the schedule and follow pooled estimates: `ema` and `auto`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.median_hold import format_rate
from stepsize.policies.rate_filter import RateFilter
from stepsize.pooling import Moments, MomentSums, RatioSums, moments, per_rate

PROBE_RATE = 1e-6
"""Longest first step of `auto`: too short to harm anything, and long enough for float32 to resolve d = θ1 − θ0
where a step of rate 1 moves weights by about 1, as Adam-like optimizers do."""
PROBE_PATIENCE = 10
"""Estimates without evidence after which `auto` probes with steps ten times as long."""
SAID_FACTOR = 1.5
"""A rate that moved by less than this since it was last reported is not reported again."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Which steps to measure: all of the first interval, then the first `count` of every interval."""

    interval: int
    count: int
    start: int

    def wants(self, step: int) -> bool:
        """Whether `step` is to be measured."""
        since = step - self.start
        return 0 <= since < self.interval or (since >= 0 and since % self.interval < self.count)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The lowest and the highest rate a policy may set."""

    low: float
    high: float

    def clamp(self, rate: float) -> float:
        """The nearest rate within the bounds."""
        return min(max(rate, self.low), self.high)


class Ema:
    """The ratio of exponential averages, η = −EMA(dᵀg/η) / EMA(dᵀGd/η²), the study's first idea for future work.

    Before `start` the schedule rules, from then on the ratio does, beginning at the rate of step `start`.
    Each estimate moves the rate by at most `clip` either way. A ratio that is not positive leaves the rate
    as it is. Outcomes: ok and ascent are averaged; flat, nonfinite, stale and dropped change nothing.
    """

    def __init__(self, *, measuring: Measuring, bounds: Bounds, pooling: int, clip: float) -> None:
        self.measuring, self.bounds, self.clip = measuring, bounds, clip
        self._sums = RatioSums(decay=1.0 - 1.0 / pooling)
        self._rate: float | None = None
        self._said: float | None = None

    def wants(self, step: int) -> bool:
        """Every step of the first interval, then the first `count` of every interval."""
        return self.measuring.wants(step)

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's before `start` (and while it is zero), then the followed rate."""
        if step < self.measuring.start:
            return scheduled
        if self._rate is None and scheduled > 0:
            self._rate = self._said = self.bounds.clamp(scheduled)
        return scheduled if self._rate is None else self._rate

    def observe(self, estimate: Estimate) -> str | None:
        """Average it in and move the rate towards the ratio; says so when the rate has moved by half."""
        pair = per_rate(estimate)
        if pair is None or self._rate is None or estimate.step < self.measuring.start:
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
        return {"sums": self._sums.state_dict(), "rate": self._rate, "said": self._said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._sums.load_state_dict(state["sums"])
        self._rate, self._said = state["rate"], state["said"]


class Auto:
    """Finds the rate by itself from any first guess and follows it; the schedule has no say from `start` on.

    1. Probing. Steps of min(guess, 1e-6): α_abs of a step does not depend on how long that step was, so a
       harmless one tells as much as a long one. Estimates are summed until the pooled α* lies two standard
       errors above zero, often the first. After ten estimates without that, steps get ten times longer, up to
       the guess. That is all the guess is used for: a bound on the steps taken before there is evidence. Only
       steps that are too short to be told from none go past it, up to the highest rate allowed.
    2. Following. The rate is a `RateFilter`'s: every estimate counts by its error bar, so a step at most goes as
       far as the evidence does, and no estimate moves it by more than `clip`. Over the first `warmup` steps
       the rate is multiplied by a ramp from 1/warmup to 1, because one step's α* knows of no step after it,
       and an optimizer's first directions are its wildest.
    3. Cooling down, unless told not to: over the last part of the budget the rate falls linearly to zero. Nothing is
       measured or heeded then: as the rate falls so does the α* that is measured, and would chase it to nothing.

    `bounds` hold for the guess, the probing steps and the filter; warm-up and cool-down pass through lower rates.

    Outcomes: ok and ascent (with its negative α*) enter the filter. flat: no evidence, ignored; while
    probing, steps get ten times longer at once, past the guess too. nonfinite: the rate is halved; while
    probing, nothing.
    stale and dropped: ignored, yet the filter's uncertainty grows with every step that passes.
    """

    def __init__(
        self,
        *,
        guess: float,
        measuring: Measuring,
        bounds: Bounds,
        drift: float,
        clip: float,
        warmup: int,
        cooldown: tuple[int, int] | None,
    ) -> None:
        self.measuring, self.bounds, self.warmup = measuring, bounds, warmup
        self.guess = bounds.clamp(guess)
        self.cooldown = cooldown  # (first step, first step after the budget)
        self._filter = RateFilter(drift=drift, largest_factor=clip)
        self._sums = MomentSums()
        self._probe = bounds.clamp(min(self.guess, PROBE_RATE))
        self._probed = 0  # estimates without evidence at the present length of probing steps
        self._found: int | None = None  # first step after probing
        self._said: float | None = None

    def wants(self, step: int) -> bool:
        """Every step while probing and of the first interval, then the first `count` of every; none in cool-down."""
        if step < self.measuring.start or self._cooling(step):
            return False
        return self._found is None or self.measuring.wants(step)

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's before `start`; then probing steps, then the filter's rate under warm-up and cool-down."""
        if step < self.measuring.start:
            return scheduled
        if self._found is None:
            return self._probe * self._left(step)
        ramp = min(1.0, max(1, step - self._found + 1) / self.warmup) if self.warmup else 1.0
        return self.bounds.clamp(self._filter.rate) * ramp * self._left(step)

    def observe(self, estimate: Estimate) -> str | None:
        """Weigh it by its error bar; says so when probing ends and when the rate has moved by half since."""
        if estimate.step < self.measuring.start or self._cooling(estimate.step):
            return None
        if self._found is None:
            return self._observe_probe(estimate)
        after = estimate.step + estimate.age + 1
        if estimate.outcome is Outcome.NONFINITE:
            return self._halve(after)
        one = moments(estimate)
        if one is None:
            return None
        self._filter.add(one, step=estimate.step)
        self._clamp()
        if not moved(self._said, self._filter.rate):
            return None
        return self._say(after, f"α* followed to within {self._filter.relative_error:.0%}")

    def _observe_probe(self, estimate: Estimate) -> str | None:
        after = estimate.step + estimate.age + 1
        one = moments(estimate)
        if one is not None:
            self._probed += 1
            found = self._evidence(one)
            if found is not None:
                rate, error = found
                self._filter.start(rate, error, step=estimate.step)
                self._clamp()
                self._found, before = after, self._probe
                self._said = self._filter.rate
                return (
                    f"step {after}: rate {format_rate(before)} → {format_rate(self._said)}, reached over "
                    f"{self.warmup} steps (α* of probing steps {format_rate(rate)} ± {format_rate(error)})"
                )
        flat = estimate.outcome is Outcome.FLAT
        longest = self.bounds.high if flat else self.guess
        if not (flat or self._probed >= PROBE_PATIENCE) or self._probe >= 0.99 * longest:
            return None
        before, self._probe, self._probed = self._probe, min(10 * self._probe, longest), 0
        why = "too short a step to tell from none" if flat else "no evidence of α* yet"
        return f"step {after}: rate {format_rate(before)} → {format_rate(self._probe)} ({why})"

    def _evidence(self, one: Moments) -> tuple[float, float] | None:
        self._sums.add(one)
        pooled = self._sums.pooled()
        return pooled if pooled is not None and pooled[0] - 2 * pooled[1] > 0 else None

    def _halve(self, after: int) -> str:
        self._filter.scale(0.5)
        self._clamp()
        return self._say(after, "halved: the probe rows gave no finite number")

    def _say(self, after: int, why: str) -> str:
        before, self._said = self._said, self._filter.rate
        return f"step {after}: rate {format_rate(before)} → {format_rate(self._said)} ({why})"

    def _clamp(self) -> None:
        rate = self._filter.rate
        if (bounded := self.bounds.clamp(rate)) != rate:
            self._filter.scale(bounded / rate)

    def _cooling(self, step: int) -> bool:
        return self.cooldown is not None and step >= self.cooldown[0]

    def _left(self, step: int) -> float:
        """What the cool-down leaves of a rate: 1 before it, falling linearly to 0 at the end of the budget."""
        if self.cooldown is None:
            return 1.0
        first, end = self.cooldown
        return min(1.0, max(0.0, (end - step) / (end - first)))

    def state_dict(self) -> dict[str, Any]:
        """Phase, sums and filter, as JSON values."""
        return {
            "filter": self._filter.state_dict(),
            "sums": self._sums.state_dict(),
            "probe": self._probe,
            "probed": self._probed,
            "found": self._found,
            "said": self._said,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._filter.load_state_dict(state["filter"])
        self._sums.load_state_dict(state["sums"])
        self._probe, self._probed = state["probe"], state["probed"]
        self._found, self._said = state["found"], state["said"]


def moved(before: float | None, after: float) -> bool:
    """Whether a rate is worth reporting again."""
    return before is None or not 1 / SAID_FACTOR < after / before < SAID_FACTOR
