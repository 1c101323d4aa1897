"""`auto_single`: finds the rate from any first guess, and follows single steps' estimates by their error bars."""

from __future__ import annotations

from typing import Any

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.cadence import Cadence
from stepsize.policies.evidence import ENOUGH_ROWS, FewRows, FirstRate, RateFilter, Repeats, TrialSteps, steps_a_block
from stepsize.policies.horizon import SingleSteps
from stepsize.policies.rates import NO_COOL_DOWN, Bounds, CoolDown, format_rate, moved
from stepsize.pooling import COUNTED

MOST_HALVINGS = 3
"""How often a rate is halved in a row for want of finite numbers."""


class AutoSingle(SingleSteps):
    """Finds the rate by itself from any first guess and follows it; the schedule has no say from `start` on.

    This was `auto` before that looked further ahead than one step; it is here for comparison.

    1. Searching, by `TrialSteps`.
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
        self.cooldown = NO_COOL_DOWN if cooldown is None else CoolDown(*cooldown)
        self._filter = RateFilter(drift=drift, largest_factor=clip)
        self._trials = TrialSteps(guess=guess, bounds=bounds)
        self._found: int | None = None  # first step after the search
        self._warmup = warmup  # in steps; known once the search has seen how many rows a step probes
        self._halved = 0  # how often the rate is halved for want of finite numbers
        self._since = 0  # first step at the present halving
        self._few_rows, self._repeats = FewRows(), Repeats()
        self._said: float | None = None

    def wants(self, step: int) -> bool:
        """Every step while searching and of the first interval, then the first `count` of every; none in cool-down."""
        if step < self.cadence.start or self.cooldown.begun(step):
            return False
        return self._found is None or self.cadence.wants(step)

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's before `start`; then trial steps, then the filter's rate under warm-up and cool-down."""
        if step < self.cadence.start:
            return scheduled
        if self._found is None:
            return self._trials.rate * self.cooldown.left(step)
        ramp = min(1.0, max(1, step - self._found + 1) / self._warmup) if self._warmup else 1.0
        return self._rate * ramp * self.cooldown.left(step)

    @property
    def _rate(self) -> float:
        """The rate but for warm-up and cool-down."""
        if self._found is None:
            return self._trials.rate
        return self.bounds.clamp(self._filter.rate * 0.5**self._halved)

    def observe(self, estimate: Estimate) -> str | None:
        """Weigh it by its error bar; says so when the search ends, when the rate has moved by half since, and of what
        comes again and again.
        """
        if estimate.step < self.cadence.start or self.cooldown.begun(estimate.step):
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
            self._filter.keep_within(self.bounds)
        if not moved(self._said, self._rate):
            return None
        return self._say(after, f"the rate that α* suggests, known to {self._filter.relative_error:.0%}")

    def _search(self, estimate: Estimate) -> str | None:
        said = self._trials.observe(estimate, self._few_rows)
        if not isinstance(said, FirstRate):
            return said
        after = estimate.step + estimate.age + 1
        self._filter.start(said.rate, said.rate * said.relative_error, step=estimate.step)
        self._filter.keep_within(self.bounds)
        self._found = self._since = after
        self._warmup = self.warmup * steps_a_block(estimate.rows)
        self._said = self._rate
        few = f"; {estimate.rows} probe rows tell little: give {ENOUGH_ROWS} or more, or watch the loss"
        return (
            f"step {after}: rate {format_rate(said.trial)} → {format_rate(self._said)}, reached over "
            f"{self._warmup} steps ({said.why})" + (few if estimate.rows < ENOUGH_ROWS else "") + said.remark
        )

    def _say(self, after: int, why: str) -> str:
        before, self._said = self._said, self._rate
        return f"step {after}: rate {format_rate(before)} → {format_rate(self._said)} ({why})"

    def state_dict(self) -> dict[str, Any]:
        """Phase, sums and filter, as JSON values; "probe" and "probed" are the search's, under their first names."""
        return {
            "filter": self._filter.state_dict(),
            **self._trials.state_dict(),
            **({} if self._found is None else {"since": self._since}),
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
        self._trials.load_state_dict(state)
        self._found, self._said = state["found"], state["said"]
        self._since = state.get("since", 0)  # earlier versions knew no delay
        self._warmup = state.get("warmup", self.warmup)
        self._halved = state.get("halved", 0)
        self._few_rows.load_state_dict(state.get("few_rows"))
        self._repeats.load_state_dict(state.get("repeats"))
