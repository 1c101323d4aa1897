"""`none` and `observe`: the schedule rules, whatever is measured."""

from __future__ import annotations

from typing import Any

from stepsize.estimate import Estimate
from stepsize.policies.evidence import Repeats
from stepsize.policies.horizon import SingleSteps


class NoMeasurements(SingleSteps):
    """Measures nothing; the schedule rules."""

    sets_rate = False

    def wants(self, step: int) -> bool:
        """Never."""
        return False

    def observe(self, estimate: Estimate) -> str | None:
        """Ignores it."""
        return None

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's."""
        return scheduled

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Observe(NoMeasurements):
    """Measures the first `count` steps of every `interval` from `start` on; the schedule rules.

    The protocol of experiment 1 of Suckrow 2025 (see stepsize/README.md). An outcome without a number is not repeated.
    """

    def __init__(self, *, interval: int, count: int, start: int) -> None:
        self.interval, self.count, self.start = interval, count, start
        self._repeats = Repeats()

    def observe(self, estimate: Estimate) -> str | None:
        """Changes nothing; says so of outcomes that come again and again."""
        self._repeats.add(estimate)
        return self._repeats.with_warning(None, estimate, estimate.learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """The row of outcomes under way."""
        return {"repeats": self._repeats.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._repeats.load_state_dict(state.get("repeats"))

    def wants(self, step: int) -> bool:
        """Whether `step` is one of the first `count` of its interval."""
        return step >= self.start and (step - self.start) % self.interval < self.count
