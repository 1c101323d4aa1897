"""`auto`: finds the rate from any first guess, and keeps it where many steps together gain what they should."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.evidence import ENOUGH_ROWS, FewRows, FirstRate, RateFilter, Repeats, TrialSteps, steps_a_block
from stepsize.policies.horizon import (
    FIRST_SERIES,
    NO_HORIZON,
    HorizonPlan,
    HorizonSeries,
    HorizonWindows,
    UnseenGain,
    target_of,
)
from stepsize.policies.rates import NO_COOL_DOWN, Bounds, CoolDown, format_rate, moved
from stepsize.pooling import COUNTED

BEGINNING = 0.3
"""Share of the rate found by trial steps at which training begins: what lands one step at the minimum along it is too
long for the steps that follow."""
LONGEST_WARMUP = 0.25
"""Share of what is left before the cool-down that a warm-up takes at most, where few rows ask for a longer one."""
SINGLE_TARGET = 1.75
"""α of one of the first steps at which its rate is right: momentum goes on where such a step ends."""
SINGLE_ERROR = 0.5
"""How well the first steps tell the rate of many, relative to it."""
SINGLE_DRIFT = 0.02
"""How far the best rate moves in one of the first steps, relative to it."""
DRIFT = 0.6
"""How far it moves at most while the steps so far grow by a factor of e, relative to it."""
TARGET_ERROR = 0.3
"""How well the target is known, relative to it: no series counts for more than that, however many rows it probed."""
UP, DOWN = 1.5, 0.5
"""By how much one measurement changes the rate at most."""
FASTEST = 2
"""A rate that rises is at most so many times the mean rate of the steps that speak for it."""
SHORTEST = 8
"""Steps of a horizon below which α_K times the rate of its steps, not the present rate, is what counts."""
AIMED_VARIANCE = 2 * TARGET_ERROR**2
"""Of α_K relative to its target: a series has as many measurements as it takes, but at most MOST_MEASUREMENTS."""
MOST_MEASUREMENTS = 4
"""Where they have rows enough for an error bar each; else a series has as many as a block has steps."""
SEVERAL = 400
"""Steps up to which a series may have more than one measurement. Later ones need no more: in the long run the filter
pools enough of them."""
SINGLE_BLOCKS = 2
"""So many blocks of single steps are measured at least, where one of these has too few rows."""
SPREADS = 8
"""Series over which the variance of one measurement is averaged."""
MOST_HALVINGS = 3
"""How often a rate is halved in a row for want of finite numbers."""
FITTED = 1e-3
"""Share of the first loss below which no rate rises: rows read again are known by then, and there is nothing to gain
that is worth a longer step."""
LOSING, ERRORS = 3, 2.0
"""So many series in a row, each so many standard errors below zero, are steps that raise the loss."""
MOST_LOSING = 10
"""So many such series in a row move the rate; whatever they are of, more of them would not help."""


class Auto:
    """Finds the rate by itself from any first guess and holds it on target; the schedule has no say from `start` on.

    1. Searching, by `TrialSteps`: a first rate, from steps too short to harm; on a plateau, where α* tells none, one
       that costs little.
    2. Single steps: from 0.3 times that rate on, α* of each of the next 24 steps is followed by a `RateFilter`, and
       should be 1.75; of so many more as make two blocks, where a step probes fewer than 16 rows. Over the first
       `warmup` steps the rate is multiplied by a ramp from 1/warmup to 1.
    3. Horizon: from then on α_K of the latest quarter or so of all steps is measured again and again, whenever
       `HorizonWindows` begins a series, and compared with its target (`target_of`): above it the steps were too short
       for what is left to gain, below it they rattle more than they gain. If there is a cool-down, α_K may be lower, as
       long as that costs little of the loss, and lower still where nothing is learned yet (`UnseenGain`). The rate is
       multiplied by the ratio of the two, damped by a Kalman gain of the measured variance and of how well the target
       is known, but to within two standard errors of that ratio; by no more than 1.5 up and 2 down, and, from K = 8 on
       and past the warm-up, up to twice the mean rate of the measured steps; nor up at all once less than a thousandth
       of the first loss is left. Where one measurement tells too little, the next series has up to four in the first
       400 steps; of fewer than 16 rows each, those of a block.
    4. Cooling down, unless told not to: over the last part of the budget the rate falls linearly to zero, and nothing
       is measured.

    `bounds` hold for the guess, the trial steps and what is followed; warm-up and cool-down pass through lower rates.

    Outcomes of single steps: ok and ascent count. Of many: ok and ascent are pooled; a series of which nothing counts
    halves the rate if numbers were not finite, as single steps do, three times in a row at most, and leaves it alone if
    they were flat, stale or dropped. Three series in a row that lie two standard errors below zero are said to raise
    the loss, as they do on rows that a model overfits; after the tenth they move the rate no longer.

    What the caller takes off the rate, such as a rollback's factor, is measured with the steps it made: where these
    stay above their target, the rate comes back. A caller who wants it to stay lower for a while tells of no estimate
    in that time: the rate then stands still.

    Estimates may come some steps late, and then move the rate of that time.
    """

    sets_rate = True

    def __init__(
        self,
        *,
        guess: float,
        start: int = 0,
        bounds: Bounds = Bounds(low=1e-12, high=100.0),  # noqa: B008 (frozen)
        warmup: int = 20,
        cooldown: tuple[int, int] | None = None,
        endless: bool = False,
    ) -> None:
        """`cooldown` is its first step and the first after the budget; `endless` that there is no budget, so that K
        is bounded.
        """
        self.start, self.bounds, self.warmup = start, bounds, warmup
        self.cooldown = NO_COOL_DOWN if cooldown is None else CoolDown(*cooldown)
        self._trials = TrialSteps(guess=guess, bounds=bounds, beginning=BEGINNING, gives_up=True)
        self._filter = RateFilter(drift=SINGLE_DRIFT, largest_factor=UP, smallest_factor=DOWN)
        self._windows = HorizonWindows(endless=endless)
        self._unseen = UnseenGain()
        self._from_first_step = False  # whether it has looked on since the first step
        self._few_rows, self._repeats = FewRows(), Repeats()
        self._found: int | None = None  # first step after the search
        self._warmup = warmup  # in steps; known once the search has seen how many rows a step probes
        self._block = 1  # steps that make one estimate: more than one where these probe few rows
        self._open: list[HorizonSeries] = []  # whose measurements have not all come, oldest first
        self._last = 0  # t of the latest series that counted
        self._spread, self._spreads = 0.0, 0  # relative variance of one measurement, and of how many series
        self._losing, self._losing_since = 0, 0  # series in a row that lost, and the step of the first one's snapshot
        self._halved, self._since = 0, 0  # how often in a row for want of finite numbers, and since which step
        self._said: float | None = None

    def wants(self, step: int) -> bool:
        """Every step while searching, and the 24 after that or those of two blocks; none in cool-down."""
        if step < self.start or self.cooldown.begun(step):
            return False
        return self._found is None or step - self._found < max(FIRST_SERIES, SINGLE_BLOCKS * self._block)

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's before `start`; then trial steps, then the rate under warm-up and cool-down."""
        if step < self.start:
            return scheduled
        if self._found is None:
            return self._trials.rate * self.cooldown.left(step)
        ramp = min(1.0, max(1, step - self._found + 1) / self._warmup) if self._warmup else 1.0
        return self._filter.rate * ramp * self.cooldown.left(step)

    def horizon(self, done: int) -> HorizonPlan:
        """Snapshots and series as `HorizonWindows` plans them; in cool-down all snapshots are let go."""
        found = self._found
        if found is None or done <= found:
            return NO_HORIZON
        if self.cooldown.begun(done):
            plan = self._windows.clear()
        else:
            latest = self._windows.series_end
            t, rate = done - found, self.learning_rate(done - 1, 0.0)
            wished = min(math.ceil(self._spread / AIMED_VARIANCE), MOST_MEASUREMENTS) if t <= SEVERAL else 1
            plan = self._windows.plan(t, rate=rate, wished=max(wished, self._block))
            if plan.since is not None and t > latest:
                last, mean = self._windows.series_end, self._windows.mean_rate
                begun = HorizonSeries(since=plan.since, first=t, last=last, mean_rate=mean, rate=self._filter.rate)
                self._open.append(begun)
        since = None if plan.since is None else plan.since + found
        return replace(plan, since=since, forget=tuple(t + found for t in plan.forget))

    def observe(self, estimate: Estimate) -> str | None:
        """Weigh it; says so when the search ends, when the rate has moved by half since, and of what comes again and
        again.
        """
        if estimate.step < self.start or self.cooldown.begun(estimate.step):
            return None
        self._repeats.add(estimate)
        self._from_first_step = self._from_first_step or estimate.step == 0
        if self._found is None:
            decided = self._search(estimate)
        elif estimate.horizon == 1:
            decided = self._follow(estimate)
        else:
            decided = self._pool(estimate)
        return self._repeats.with_warning(decided, estimate, self.learning_rate(estimate.step, estimate.learning_rate))

    def _search(self, estimate: Estimate) -> str | None:
        said = self._trials.observe(estimate, self._few_rows)
        if not isinstance(said, FirstRate):
            return said
        after = estimate.step + estimate.age + 1
        self._found = after
        longest = max(self.warmup, int(LONGEST_WARMUP * (self.cooldown.first - after)))
        self._block = steps_a_block(estimate.rows)
        self._warmup = min(self.warmup * self._block, longest)
        self._unseen.first_loss = said.loss if self._from_first_step else None
        self._filter.start(said.rate, said.rate * said.relative_error, step=estimate.step)
        self._filter.keep_within(self.bounds)
        self._said = self._filter.rate
        few = f"; {estimate.rows} probe rows tell little: give {ENOUGH_ROWS} or more, or watch the loss"
        return (
            f"step {after}: rate {format_rate(said.trial)} → {format_rate(self._said)}, reached over {self._warmup} "
            f"steps ({said.why})" + (few if estimate.rows < ENOUGH_ROWS else "") + said.remark
        )

    def _follow(self, estimate: Estimate) -> str | None:
        after = estimate.step + estimate.age + 1
        if self._found is None or estimate.step < self._found:
            return None
        if estimate.outcome is Outcome.NONFINITE:
            return self._halve(estimate.step, after)
        if estimate.outcome in COUNTED:
            self._halved = 0
        one = self._few_rows.add(estimate)
        if one is not None:
            self._filter.add(one, step=estimate.step, target=SINGLE_TARGET)
            self._last = estimate.step + 1 - self._found
            self._filter.keep_within(self.bounds)
        return self._say_if_moved(after, "the rate that α* of single steps suggests")

    def _pool(self, estimate: Estimate) -> str | None:
        """Completes one series at most: estimates come in the order of their steps."""
        t = estimate.step + 1 - (self._found or 0)
        after = estimate.step + estimate.age + 1
        said = []
        while self._open and self._open[0].last < t:  # of which a measurement was never made
            said.append(self._close(self._open.pop(0), after))
        if self._open and self._open[0].first <= t:
            self._open[0].add(estimate)
            if self._open[0].complete:
                said.append(self._close(self._open.pop(0), after))
        return "; ".join(filter(None, said)) or None

    def _close(self, series: HorizonSeries, after: int) -> str | None:
        """Move the rate by what a whole series says."""
        if not self._spreads:
            self._filter.widen(SINGLE_ERROR)
        if series.moments:
            self._block = steps_a_block(series.rows // len(series.moments))
        target = target_of(self._windows.bounded(series.first), self._bounded_since(series))
        pooled = series.pooled(target)
        if pooled is None:
            self._windows.hasten()
            if series.moments:  # too few rows in one measurement
                self._keep_spread(MOST_MEASUREMENTS * AIMED_VARIANCE)
            step = series.first - 1 + (self._found or 0)
            return self._halve(step, after) if series.nonfinite else None
        self._halved = 0
        relative, variance = pooled
        self._unseen.add(series)
        losing = self._lost(series, relative, math.sqrt(variance))
        unseen = 0.0 if self._losing else self._unseen_gain(series)
        self._keep_spread(variance / target**2 * len(series.moments))
        ratio, present, highest = (relative + unseen) / target, self._filter.rate, math.inf
        if series.horizon < SHORTEST or series.since < self._warmup:
            ratio *= series.mean_rate / present
        else:
            ratio *= 1.0 if series.rate is None else series.rate / present  # which those under way may have moved
            highest = max(FASTEST * series.mean_rate, present)
        if self._losing > MOST_LOSING:
            return losing
        if self._unseen.gained > 1 - FITTED:
            highest = present
        drifted = self._drifted(series.first)
        self._filter.correct(ratio, noise=variance / target**2 + TARGET_ERROR**2, drifted=drifted)
        self._last = max(series.first, self._last)
        self._filter.scale(min(1.0, highest / self._filter.rate))
        self._filter.keep_within(self.bounds)
        found, wanted = f"{relative:.2f} ± {math.sqrt(variance):.2f}", f"{target:.2f}"
        if unseen >= 0.01:
            wanted += f", less {min(unseen, target):.2f} for what it may not show"
        why = f"α* of {series.horizon} steps is {found}, and should be {wanted}"
        return losing or self._say_if_moved(after, why)

    def _drifted(self, t: int) -> float:
        """By how much the variance of the best rate's logarithm has grown since the latest series that counted."""
        steps = max(0, t - self._last)  # none, where single steps were measured meanwhile
        return min(steps * SINGLE_DRIFT**2, DRIFT**2 * math.log1p(steps / max(1, self._windows.bounded(self._last))))

    def _unseen_gain(self, series: HorizonSeries) -> float:
        """By how much α_K may lie below `target_of`: by nothing where no cool-down takes the rattling away at last."""
        if self.cooldown == NO_COOL_DOWN:
            return 0.0
        done, since = self._windows.bounded(series.first), self._bounded_since(series)
        return self._unseen.of_horizon(done=done, since=since)

    def _bounded_since(self, series: HorizonSeries) -> int:
        """Its snapshot's t, counted as `bounded` counts."""
        return max(0, self._windows.bounded(series.first) - series.horizon)

    def _keep_spread(self, variance: float) -> None:
        self._spreads = min(self._spreads + 1, SPREADS)
        self._spread += (min(variance, MOST_MEASUREMENTS * AIMED_VARIANCE) - self._spread) / self._spreads

    def _lost(self, series: HorizonSeries, relative: float, error: float) -> str | None:
        """What to say once series after series raised the loss."""
        if relative + ERRORS * error >= 0:
            self._losing = 0
            return None
        self._windows.hasten()
        self._losing += 1
        if self._losing == 1:
            self._losing_since = series.since + (self._found or 0)
        if self._losing != LOSING:
            return None
        return (
            f"step {series.last + (self._found or 0)}: the steps since step {self._losing_since} raise the loss on the "
            f"probe rows (α* of {series.horizon} steps is {relative:.2f} ± {error:.2f}, below zero {LOSING} times in a "
            "row): if these rows are kept from training the model overfits since then, and the best weights are of "
            "before; else the log changes faster than the model learns"
        )

    def _halve(self, step: int, after: int) -> str | None:
        """For want of finite numbers at `step`, three times in a row at most, and once for what was under way."""
        if self._halved == MOST_HALVINGS or step < self._since:
            return None
        self._halved, self._since = self._halved + 1, after
        self._filter.scale(DOWN)
        self._filter.keep_within(self.bounds)
        return self._say(after, "halved: the probe rows gave no finite number")

    def _say(self, after: int, why: str) -> str:
        before, self._said = self._said, self._filter.rate
        return f"step {after}: rate {format_rate(before)} → {format_rate(self._said)} ({why})"

    def _say_if_moved(self, after: int, why: str) -> str | None:
        return self._say(after, why) if moved(self._said, self._filter.rate) else None

    def state_dict(self) -> dict[str, Any]:
        """Phase, search, filter, windows and what is under way, as JSON values."""
        return {
            "filter": self._filter.state_dict(),
            "trials": self._trials.state_dict(),
            "windows": self._windows.state_dict(),
            "open": [series.state_dict() for series in self._open],
            "found": self._found,
            "warmup": self._warmup,
            "block": self._block,
            "last": self._last,
            "spread": [self._spread, self._spreads],
            "unseen": self._unseen.state_dict(),
            "from_first_step": self._from_first_step,
            "losing": [self._losing, self._losing_since],
            "halved": [self._halved, self._since],
            "said": self._said,
            "few_rows": self._few_rows.state_dict(),
            "repeats": self._repeats.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values; or, of a version whose `auto` followed single steps, from its rate."""
        self._filter.load_state_dict(state["filter"])
        self._trials.load_state_dict(state.get("trials", state))
        self._found, self._said = state["found"], state["said"]
        self._warmup, self._block = state.get("warmup", self.warmup), state.get("block", 1)
        self._from_first_step = state.get("from_first_step", False)
        self._few_rows.load_state_dict(state.get("few_rows"))
        self._repeats.load_state_dict(state.get("repeats"))
        if "windows" not in state:
            return
        self._windows.load_state_dict(state["windows"])
        self._open = [HorizonSeries(**values) for values in state["open"]]
        self._last = state["last"]
        self._spread, self._spreads = state["spread"]
        if "unseen" in state:
            self._unseen.load_state_dict(state["unseen"])
        self._losing, self._losing_since = state["losing"]
        self._halved, self._since = state["halved"]
