"""The search for a first rate: trial steps too short to harm, until α* has evidence of one."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.evidence.few_rows import ENOUGH_ROWS, FewRows
from stepsize.policies.rates import Bounds, format_rate
from stepsize.pooling import COUNTED, RateMomentSums, per_rate

FIRST_TRIAL = 1e-6
"""Longest first trial step: too short to harm anything, and long enough for float32 to resolve d = θ1 − θ0
if a step of rate 1 moves weights by about 1, as Adam-like optimizers do."""
FAR = 10.0
"""Times the bound from which on α* of trial steps is taken for one of hardly any curvature."""
PATIENCE = 10
"""Estimates without evidence after which trial steps get ten times as long."""
ENDURANCE = 30
"""Estimates with a number and without evidence after which a search gives up; a block of few rows counts for ten."""
HARMLESS = 1e-4
"""Share of the loss that the curvature of a step may cost where nothing else tells how long it should be."""


@dataclass(frozen=True, kw_only=True)
class FirstRate:
    """What a search ends with."""

    rate: float
    """At which training begins."""
    relative_error: float
    """Standard error, relative to it; 1 where it is no more than harmless."""
    trial: float
    """The rate of the last trial step."""
    loss: float | None
    """Mean loss on the rows that were probed; None where it isn't known, or not above zero."""
    why: str
    """Where it comes from, to be said in brackets."""
    remark: str = ""
    """What else there is to say, beginning with a semicolon."""


@dataclass
class _Totals:
    """Sums over the estimates that had a number and a loss."""

    slope: float = 0.0
    """Per unit of rate."""
    curvature: float = 0.0
    """Per unit of rate squared."""
    loss: float = 0.0
    count: int = 0

    def add(self, slope: float, curvature: float, loss: float) -> None:
        self.slope, self.curvature = self.slope + slope, self.curvature + curvature
        self.loss, self.count = self.loss + loss, self.count + 1

    def most(self, share: float) -> float:
        """The rate of which `share` of a step takes the loss, if that rate is at the minimum; infinite without a slope.

        Where the minimum lies further, such a step takes more, up to 1 / (1 − share/2) times the loss. Whichever way
        the slope goes: of what may be noise the size alone counts.
        """
        taken = abs(self.slope) * share * (1 - share / 2)
        return self.loss / taken if taken > 0 and self.loss > 0 else math.inf

    @property
    def harmless(self) -> float:
        """The rate at which the curvature of a step costs HARMLESS of the loss; infinite where there is no such."""
        return math.sqrt(2 * HARMLESS * self.loss / self.curvature) if min(self.loss, self.curvature) > 0 else math.inf

    @property
    def mean_loss(self) -> float | None:
        return self.loss / self.count if self.loss > 0 else None


class TrialSteps:
    """Tries steps of min(guess, 1e-6) until the rate that α* suggests lies two standard errors above zero.

    That rate, α* times the step's own, does not depend on how long the step was, so a harmless one tells as much as a
    long one. Estimates are summed, and the first is often enough. Training begins at the share `beginning` of it.
    After ten estimates of one length without evidence, of whatever outcome, and after each that is flat, steps get ten
    times longer, up to the guess (flat ones to 1e-6 in any case); but not where they take a hundredth of the loss
    already (`Estimate.straight`). Only steps that were taken at the present length make it longer.

    The loss bounds what is found, since 0 is taken for the least that it can be: a step of the share b of the one that
    lands at a quadratic's minimum takes slope · rate · (1 − b/2) of it, so training may not begin at a rate that takes
    more than the loss. α* beyond is of a curvature that does not stay so small: of hardly any row where a softmax is
    near 0 and 1, a little too small where many classes are all as likely. A mean loss of 0 or less bounds nothing.

    On a plateau there may never be any evidence. A search that `gives_up` ends after thirty estimates with a number, or
    three blocks of few rows, at the rate at which the curvature of a step costs a ten-thousandth of the loss, bounded
    in the same way; and trial steps get no longer than that. It goes on where the loss is not above zero, and where α*
    lies two standard errors below zero: such steps climb. Any other search ends with evidence alone. So the guess is a
    bound on the steps before the end of a search, and nothing else.
    """

    def __init__(self, *, guess: float, bounds: Bounds, beginning: float = 1.0, gives_up: bool = False) -> None:
        self.guess, self.bounds = bounds.clamp(guess), bounds
        self.rate = bounds.clamp(min(self.guess, FIRST_TRIAL))
        """Of the coming step."""
        self._beginning, self._gives_up = beginning, gives_up
        self._sums = RateMomentSums()
        self._tried = 0  # estimates without evidence at the present length
        self._since = 0  # first step at the present length
        self._told = 0  # estimates with a number, none of them evidence; a block of few rows counts for PATIENCE
        self._all, self._present = _Totals(), _Totals()  # of every length; of the present one, which rounds least
        self._limit = math.inf  # the longest harmless rate, as the estimates of the length before had it

    def observe(self, estimate: Estimate, few_rows: FewRows) -> FirstRate | str | None:
        """Takes in one estimate; says what was found, or what changed."""
        after, present = estimate.step + estimate.age + 1, estimate.step >= self._since
        few = estimate.rows < ENOUGH_ROWS
        if few and not present:
            return None  # the block they would complete counts for the present length
        one = few_rows.add(estimate)
        pair = per_rate(estimate)
        if pair is not None and estimate.loss is not None:
            self._all.add(*pair, estimate.loss)
            if present:
                self._present.add(*pair, estimate.loss)
        if one is not None:
            self._sums.add(one)
            self._told += PATIENCE if few else 1
            if (found := self._found(few)) is not None:
                return found
        if not present:
            return None
        if estimate.straight:
            return None
        flat = estimate.outcome is Outcome.FLAT
        waiting = one is None and estimate.outcome in COUNTED  # for the rest of a block
        self._tried += 0 if waiting else PATIENCE if flat or (few and one is not None) else 1
        longest = max(self.guess, self.bounds.clamp(FIRST_TRIAL)) if flat else self.guess
        longest = min(longest, max(self._harmless, self.rate))
        if self._tried < PATIENCE or self.rate >= 0.99 * longest:
            return None
        before, self.rate, self._tried, self._since = self.rate, min(10 * self.rate, longest), 0, after
        self._limit, self._present = self._harmless, _Totals()
        why = "too short a step to tell from none" if flat else "no evidence of a rate yet"
        return f"step {after}: rate {format_rate(before)} → {format_rate(self.rate)} ({why})"

    def _found(self, few: bool) -> FirstRate | None:
        pooled = self._sums.pooled()
        if pooled is None:
            return None
        rate, error = pooled
        if rate - 2 * error > 0:
            return self._evident(rate, error)
        harmless, known = self.bounds.clamp(self._harmless), few or self._present.count >= PATIENCE
        if self._told < ENDURANCE or rate + 2 * error < 0 or self._harmless == math.inf or not known:
            return None
        why = (
            f"of which the curvature of a step costs {HARMLESS:.2%} of the loss: trial steps suggest "
            f"{format_rate(rate)} ± {format_rate(error)}, which is no evidence of a rate"
        )
        return FirstRate(rate=harmless, relative_error=1.0, trial=self.rate, loss=self._all.mean_loss, why=why)

    def _evident(self, suggested: float, error: float) -> FirstRate:
        rate = min(suggested, self._all.most(self._beginning))
        said = f"{format_rate(rate)} ± {format_rate(error * rate / suggested)}"
        whole = self._beginning == 1
        why = f"trial steps suggest {said}" if whole else f"{self._beginning:g} of the {said} that trial steps suggest"
        return FirstRate(
            rate=self._beginning * rate,
            relative_error=error / suggested,
            trial=self.rate,
            loss=self._all.mean_loss,
            why=why,
            remark=self._remark(rate, suggested),
        )

    def _remark(self, rate: float, suggested: float) -> str:
        if suggested > FAR * rate:
            return (
                f"; α* has {format_rate(suggested)}, of which a step would take many times the loss, as if hardly "
                "a row had a curvature: where a softmax is near 0 and 1, scale the inputs"
            )
        if suggested > 1.01 * rate:  # not for rounding
            return f"; α* has {format_rate(suggested)}, of which a step would take more than the loss"
        if self.rate > 2 * rate:
            return (
                f"; the trial step was {self.rate / rate:.3g} times too long and raised the loss: scale the "
                f"inputs, or begin again with a first guess of {format_rate(rate / 10)}"
            )
        return ""

    @property
    def _harmless(self) -> float:
        """The longest rate where nothing tells one; infinite where it cannot be known."""
        if not self._gives_up or self._present.harmless == math.inf:
            return self._limit
        return min(self._present.harmless, self._all.most(self._beginning) * self._beginning)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values, under the names that `AutoSingle`'s state has had for them."""
        return {
            "sums": self._sums.state_dict(),
            "probe": self.rate,
            "probed": self._tried,
            "since": self._since,
            "told": self._told,
            "limit": None if self._limit == math.inf else self._limit,
            "totals": [list(astuple(totals)) for totals in (self._all, self._present)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._sums.load_state_dict(state["sums"])
        self.rate, self._tried, self._since = state["probe"], state["probed"], state.get("since", 0)
        self._told, limit = state.get("told", 0), state.get("limit")
        self._limit = math.inf if limit is None else limit
        earlier = "told" not in state  # whose totals had no curvature
        self._all, self._present = (_Totals(), _Totals()) if earlier else (_Totals(*one) for one in state["totals"])
