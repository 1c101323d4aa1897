"""`auto`: finds the rate by itself from any first guess, and follows single estimates by their error bars."""

from __future__ import annotations

from typing import Any

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.cadence import Cadence
from stepsize.policies.few_rows import ENOUGH_ROWS, FewRows, steps_a_block
from stepsize.policies.rate_filter import RateFilter
from stepsize.policies.rates import Bounds, format_rate, moved
from stepsize.policies.repeats import Repeats
from stepsize.pooling import COUNTED, RateMoments, RateMomentSums

FIRST_TRIAL = 1e-6
"""Longest first step of `auto`: too short to harm anything, and long enough for float32 to resolve d = θ1 − θ0
if a step of rate 1 moves weights by about 1, as Adam-like optimizers do."""
PATIENCE = 10
"""Estimates without evidence after which `auto` takes trial steps ten times as long."""
MOST_HALVINGS = 3
"""How often a rate is halved in a row for want of finite numbers."""


class Auto:
    """Finds the rate by itself from any first guess and follows it; the schedule has no say from `start` on.

    1. Searching. Trial steps of min(guess, 1e-6): the rate that α* suggests, α* times the step's own, does not depend
       on how long the step was, so a harmless one tells as much as a long one. Estimates are summed until the pooled
       rate lies two standard errors above zero, often the first. After ten estimates of steps of one length without
       that, of whatever outcome, and after each that is flat, steps get ten times longer, up to the guess (flat ones
       to 1e-6 in any case). That is all the guess is used for: a bound on the steps taken before there is evidence.
       Without any, the rate stays at the guess.
    2. Following. The rate is a `RateFilter`'s: every estimate counts by its error bar, so a step at most goes as
       far as the evidence does, and no estimate moves it by more than `clip`. Over the first `warmup` steps
       the rate is multiplied by a ramp from 1/warmup to 1, because one step's α* knows of no step after it,
       and an optimizer's first directions are its wildest. Where several steps make one estimate, the ramp is as
       many times longer: before it ends, the filter must have seen what the rate does.
    3. Cooling down, unless told not to: over the last part of the budget the rate falls linearly to zero. Nothing is
       measured or followed then: as the rate falls so does the one that α* suggests, and would chase it to nothing.

    `bounds` hold for the guess, the trial steps and the filter; warm-up and cool-down pass through lower rates.

    Outcomes: ok and ascent (with its negative α*) enter the filter, batches of fewer than 16 rows several at a time
    (`FewRows`). nonfinite: the rate is halved, at most three times, until numbers come again. flat, stale and dropped:
    ignored, yet the filter's uncertainty grows with every step that passes. Of ascents in a row the first ten move
    the rate. What comes ten times in a row is said: no outcome drives the rate to a bound by coming again and again.

    Estimates may come some steps late, from steps taken before the latest decision. They are weighed like any other,
    as what they say of the best rate does not depend on the rate of their step. But longer trial steps, a halving and
    taking one back answer to what the rate did: for these, only steps count that were taken at the present trial
    length or halving. So one cause has one answer, however many estimates of it were under way.
    """

    def __init__(
        self,
        *,
        guess: float,
        cadence: Cadence,
        bounds: Bounds = Bounds(),  # noqa: B008 (frozen)
        drift: float = 0.02,
        clip: float = 1.25,
        warmup: int = 20,
        cooldown: tuple[int, int] | None = None,
    ) -> None:
        """`drift` is how far the best rate is taken to move in one step, relative to it: more of it, fewer estimates
        pooled. One estimate moves the rate by a factor of `clip` at most. `cooldown` is its first step and the first
        after the budget.
        """
        self.cadence, self.bounds, self.warmup = cadence, bounds, warmup
        self.guess = bounds.clamp(guess)
        self.cooldown = cooldown
        self._filter = RateFilter(drift=drift, largest_factor=clip)
        self._sums = RateMomentSums()
        self._trial = bounds.clamp(min(self.guess, FIRST_TRIAL))
        self._tried = 0  # estimates without evidence at the present length of trial steps
        self._found: int | None = None  # first step after the search
        self._warmup = warmup  # in steps; known once the search has seen how many rows a step probes
        self._halved = 0  # how often the rate is halved for want of finite numbers
        self._since = 0  # first step at the present trial length or halving
        self._few_rows, self._repeats = FewRows(), Repeats()
        self._said: float | None = None

    def wants(self, step: int) -> bool:
        """Every step while searching and of the first interval, then the first `count` of every; none in cool-down."""
        if step < self.cadence.start or self._cooling(step):
            return False
        return self._found is None or self.cadence.wants(step)

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's before `start`; then trial steps, then the filter's rate under warm-up and cool-down."""
        if step < self.cadence.start:
            return scheduled
        if self._found is None:
            return self._trial * self._left(step)
        ramp = min(1.0, max(1, step - self._found + 1) / self._warmup) if self._warmup else 1.0
        return self._rate * ramp * self._left(step)

    @property
    def _rate(self) -> float:
        """The rate but for warm-up and cool-down."""
        if self._found is None:
            return self._trial
        return self.bounds.clamp(self._filter.rate * 0.5**self._halved)

    def observe(self, estimate: Estimate) -> str | None:
        """Weigh it by its error bar; says so when the search ends, when the rate has moved by half since, and of what
        comes again and again.
        """
        if estimate.step < self.cadence.start or self._cooling(estimate.step):
            return None
        self._repeats.add(estimate)
        decided = self._search(estimate) if self._found is None else self._follow(estimate)
        return self._repeats.with_warning(decided, estimate, self._rate)

    def _follow(self, estimate: Estimate) -> str | None:
        after = estimate.step + estimate.age + 1
        answers = estimate.step >= self._since
        if estimate.outcome is Outcome.NONFINITE:
            if self._halved == MOST_HALVINGS or not answers:
                return None
            self._halved, self._since = self._halved + 1, after
            return self._say(after, "halved: the probe rows gave no finite number")
        if estimate.outcome in COUNTED and self._halved and answers:
            self._halved, self._since = self._halved - 1, after
        if self._repeats.too_many_ascents:
            return None
        one = self._few_rows.add(estimate)
        if one is not None:
            self._filter.add(one, step=estimate.step)
            self._clamp()
        if not moved(self._said, self._rate):
            return None
        return self._say(after, f"the rate that α* suggests, known to {self._filter.relative_error:.0%}")

    def _search(self, estimate: Estimate) -> str | None:
        after, present = estimate.step + estimate.age + 1, estimate.step >= self._since
        if estimate.rows < ENOUGH_ROWS and not present:
            return None  # the block they would complete counts for the present length
        one = self._few_rows.add(estimate)
        if one is not None:
            found = self._evidence(one)
            if found is not None:
                rate, error = found
                before = self._trial
                self._filter.start(rate, error, step=estimate.step)
                self._clamp()
                self._found = self._since = after
                self._warmup = self.warmup * steps_a_block(estimate.rows)
                self._said = self._rate
                few = f"; {estimate.rows} probe rows tell little: give {ENOUGH_ROWS} or more, or watch the loss"
                return (
                    f"step {after}: rate {format_rate(before)} → {format_rate(self._said)}, reached over "
                    f"{self._warmup} steps (trial steps suggest {format_rate(rate)} ± {format_rate(error)})"
                    + (few if estimate.rows < ENOUGH_ROWS else "")
                )
        if not present:
            return None
        flat = estimate.outcome is Outcome.FLAT
        waiting = one is None and estimate.outcome in COUNTED  # for the rest of a block
        self._tried += 0 if waiting else PATIENCE if flat or (estimate.rows < ENOUGH_ROWS and one is not None) else 1
        longest = max(self.guess, self.bounds.clamp(FIRST_TRIAL)) if flat else self.guess
        if self._tried < PATIENCE or self._trial >= 0.99 * longest:
            return None
        before, self._trial, self._tried, self._since = self._trial, min(10 * self._trial, longest), 0, after
        why = "too short a step to tell from none" if flat else "no evidence of a rate yet"
        return f"step {after}: rate {format_rate(before)} → {format_rate(self._trial)} ({why})"

    def _evidence(self, one: RateMoments) -> tuple[float, float] | None:
        self._sums.add(one)
        pooled = self._sums.pooled()
        return pooled if pooled is not None and pooled[0] - 2 * pooled[1] > 0 else None

    def _say(self, after: int, why: str) -> str:
        before, self._said = self._said, self._rate
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
        """Phase, sums and filter, as JSON values; "probe" and "probed" are the search's, under their first names."""
        return {
            "filter": self._filter.state_dict(),
            "sums": self._sums.state_dict(),
            "probe": self._trial,
            "probed": self._tried,
            "since": self._since,
            "found": self._found,
            "warmup": self._warmup,
            "said": self._said,
            "halved": self._halved,
            "few_rows": self._few_rows.state_dict(),
            "repeats": self._repeats.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._filter.load_state_dict(state["filter"])
        self._sums.load_state_dict(state["sums"])
        self._trial, self._tried = state["probe"], state["probed"]
        self._found, self._said = state["found"], state["said"]
        self._since = state.get("since", 0)  # earlier versions knew no delay
        self._warmup = state.get("warmup", self.warmup)
        self._halved = state.get("halved", 0)
        self._few_rows.load_state_dict(state.get("few_rows"))
        self._repeats.load_state_dict(state.get("repeats"))
