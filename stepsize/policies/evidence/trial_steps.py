"""The search for a first rate: trial steps too short to harm, until α* has evidence of one."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.evidence.few_rows import ENOUGH_ROWS, FewRows
from stepsize.policies.rates import Bounds, format_rate
from stepsize.pooling import COUNTED, RateMoments, RateMomentSums, per_rate

FIRST_TRIAL = 1e-6
"""Longest first trial step: too short to harm anything, and long enough for float32 to resolve d = θ1 − θ0
if a step of rate 1 moves weights by about 1, as Adam-like optimizers do."""
FAR = 10.0
"""Times the bound from which on α* of trial steps is taken for one of hardly any curvature."""
PATIENCE = 10
"""Estimates without evidence after which trial steps get ten times as long."""
ROUNDS = 3
"""So often as many are waited for, by a search that gives up."""
HARMLESS = 1e-3
"""Share of the loss that the curvature of a step may cost where nothing else tells how long it should be."""


@dataclass(frozen=True, kw_only=True)
class FirstRate:
    """What the trial steps suggest."""

    rate: float
    standard_error: float
    trial: float
    """The rate of the last trial step."""
    unbounded: float
    """What α* alone suggests; above `rate` where a step of it would take more than the loss."""
    evident: bool = True
    """Whether α* suggests it; else it is one that costs little of the loss."""

    @property
    def why(self) -> str:
        """What it is, to be said after "of"."""
        if not self.evident:
            return (
                f"{format_rate(self.rate)}, whose steps' curvature costs {HARMLESS:.1%} of the loss: trial steps tell "
                "no rate, as on a plateau"
            )
        return f"the {format_rate(self.rate)} ± {format_rate(self.standard_error)} that trial steps suggest"

    @property
    def remark(self) -> str:
        """What else there is to say of it, beginning with a semicolon; empty where there is nothing."""
        if self.unbounded > FAR * self.rate:
            return (
                f"; α* has {format_rate(self.unbounded)}, of which a step would take many times the loss, as if hardly "
                "a row had a curvature: where a softmax is near 0 and 1, scale the inputs"
            )
        if self.unbounded > 1.01 * self.rate:  # not for rounding
            return f"; α* has {format_rate(self.unbounded)}, of which a step would take more than the loss"
        if self.trial > 2 * self.rate:
            return (
                f"; the trial step was {self.trial / self.rate:.3g} times too long and raised the loss: scale the "
                f"inputs, or begin again with a first guess of {format_rate(self.rate / 10)}"
            )
        return ""


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

    @property
    def most(self) -> float:
        """The rate at which the slope alone would take twice the loss; infinite where there is no such rate."""
        return 2 * self.loss / -self.slope if self.slope < 0 < self.loss else math.inf

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
    long one. Estimates are summed, and the first is often enough. After ten of steps of one length without evidence,
    of whatever outcome, and after each that is flat, steps get ten times longer, up to the guess (flat ones to 1e-6
    in any case); but not where they take a hundredth of the loss already (`Estimate.straight`). That is all the guess
    is used for: a bound on the steps taken before there is evidence. Without any, the rate stays at the guess, or where
    steps were that long, until the search gives up.

    Only steps that were taken at the present length make it longer.

    The loss bounds what is found, since 0 is taken for the least that it can be: at its minimum a quadratic lies
    ½·slope·rate below it, so training may not begin at a rate above that at which the slope alone would take twice the
    loss. α* beyond is of a curvature that does not stay so small: of hardly any row where a softmax is near 0 and 1, a
    little too small where many classes are all as likely. A mean loss of 0 or less bounds nothing.

    On a plateau there is never any evidence. A search that gives up ends after thirty estimates without it, or three
    blocks, at the rate whose steps' curvature costs a thousandth of the loss; nor do trial steps get longer than that.
    Where the loss is not above zero it goes on.
    """

    def __init__(self, *, guess: float, bounds: Bounds, beginning: float = 1.0, gives_up: bool = False) -> None:
        """`beginning` is the share of the rate found at which training begins."""
        self.guess, self.bounds = bounds.clamp(guess), bounds
        self.rate = bounds.clamp(min(self.guess, FIRST_TRIAL))
        """Of the coming step."""
        self._sums = RateMomentSums()
        self._tried = 0  # estimates without evidence at the present length
        self._since = 0  # first step at the present length
        self.beginning, self.gives_up = beginning, gives_up
        self._rounds = 0  # of PATIENCE estimates that had no evidence
        self._totals = _Totals()

    def observe(self, estimate: Estimate, few_rows: FewRows) -> FirstRate | str | None:
        """Takes in one estimate; says what was found, or what changed."""
        after, present = estimate.step + estimate.age + 1, estimate.step >= self._since
        if estimate.rows < ENOUGH_ROWS and not present:
            return None  # the block they would complete counts for the present length
        one = few_rows.add(estimate)
        pair = per_rate(estimate)
        if pair is not None and estimate.loss is not None:
            self._totals.add(*pair, estimate.loss)
        if one is not None and (found := self._evidence(one)) is not None:
            return found
        if not present:
            return None
        if estimate.straight:
            return None
        flat = estimate.outcome is Outcome.FLAT
        waiting = one is None and estimate.outcome in COUNTED  # for the rest of a block
        self._tried += 0 if waiting else PATIENCE if flat or (estimate.rows < ENOUGH_ROWS and one is not None) else 1
        if self._tried < PATIENCE:
            return None
        self._tried = 0
        if flat:
            longest = max(self.guess, self.bounds.clamp(FIRST_TRIAL))
        else:
            harmless = self._totals.harmless if self.gives_up else math.inf
            self._rounds += self.gives_up
            if self._rounds >= ROUNDS and harmless < math.inf:
                return FirstRate(
                    rate=harmless, standard_error=harmless, trial=self.rate, unbounded=harmless, evident=False
                )
            longest = min(self.guess, self.bounds.clamp(harmless))
        if self.rate >= 0.99 * longest:
            return None
        before, self.rate, self._since = self.rate, min(10 * self.rate, longest), after
        why = "too short a step to tell from none" if flat else "no evidence of a rate yet"
        return f"step {after}: rate {format_rate(before)} → {format_rate(self.rate)} ({why})"

    def _evidence(self, one: RateMoments) -> FirstRate | None:
        self._sums.add(one)
        pooled = self._sums.pooled()
        if pooled is None or pooled[0] - 2 * pooled[1] <= 0:
            return None
        rate, error = pooled
        bounded = min(rate, self._totals.most / self.beginning)
        return FirstRate(rate=bounded, standard_error=error * bounded / rate, trial=self.rate, unbounded=rate)

    @property
    def mean_loss(self) -> float | None:
        """Of the untrained model, on the rows that were probed; None where it isn't known, or not above zero."""
        return self._totals.mean_loss

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values, under the names that `AutoSingle`'s state has had for them."""
        return {
            "sums": self._sums.state_dict(),
            "probe": self.rate,
            "probed": self._tried,
            "since": self._since,
            "rounds": self._rounds,
            "totals": list(astuple(self._totals)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._sums.load_state_dict(state["sums"])
        self.rate, self._tried, self._since = state["probe"], state["probed"], state.get("since", 0)
        self._rounds, totals = state.get("rounds", 0), state.get("totals", ())
        self._totals = _Totals(*totals) if len(totals) == 4 else _Totals()  # earlier versions had no curvatures
