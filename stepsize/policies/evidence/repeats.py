"""Outcomes that come again and again: what is said of them, and when they stop moving the rate."""

from __future__ import annotations

from typing import Any

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.rates import format_rate

MANY = 10
"""Estimates of one outcome in a row after which it is said, and after which an ascent no longer moves a rate."""
MEANING = {
    Outcome.ASCENT: "the steps climb on the probe rows; the model no longer learns from these, or B1 is not like B2",
    Outcome.FLAT: "the steps change nothing that the loss sees beyond rounding; a longer one may, or nothing is left",
    Outcome.NONFINITE: "logits or their change are not finite on the probe rows; look for masked rows or divergence",
    Outcome.STALE: "they arrive later than max_age allows; raise it, or measure fewer rows",
    Outcome.DROPPED: "the one before is still being measured; measure fewer rows, or not every step",
}

STRAIGHT = (
    "the loss falls along the latest step in a straight line, as an absolute error does, or cross-entropy of logits so "
    "far apart that the softmax is 0 or 1, which inputs that are scaled mend"
)


class Repeats:
    """Counts outcomes other than ok in a row. However long a row, a policy keeps its rate within a bounded move."""

    def __init__(self) -> None:
        self.outcome: str | None = None
        self.count = 0
        self.ascents = 0
        """Ascents since the last ok, whatever came between them."""

    def add(self, estimate: Estimate) -> None:
        """Take in one estimate."""
        outcome = estimate.outcome
        self.ascents = 0 if outcome is Outcome.OK else self.ascents + (outcome is Outcome.ASCENT)
        self.count = self.count + 1 if outcome.value == self.outcome else 1
        self.outcome = outcome.value

    @property
    def too_many_ascents(self) -> bool:
        """Whether the rate has been lowered often enough."""
        return self.ascents > MANY

    def with_warning(self, decided: str | None, estimate: Estimate, rate: float) -> str | None:
        """`decided`, and of the row that `estimate`, just added, ends what there is to say: at its 10th, 100th, ..."""
        meaning = STRAIGHT if estimate.straight else MEANING.get(estimate.outcome)
        if meaning is None or self.count not in (MANY, 10 * MANY, 100 * MANY, 1000 * MANY):
            return decided
        row = f"{self.count} estimates in a row were {estimate.outcome.value}: {meaning}"
        after = estimate.step + estimate.age + 1
        return f"{decided}; {row}" if decided else f"step {after}: rate stays {format_rate(rate)} ({row})"

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {"outcome": self.outcome, "count": self.count, "ascents": self.ascents}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state_dict`'s values; None, of a run older than them, begins anew."""
        self.__init__() if state is None else vars(self).update(state)
