"""`none` and `observe`: the schedule rules, whatever is measured."""

from __future__ import annotations

from typing import Any

from stepsize.estimate import Estimate


class NoMeasurements:
    """Measures nothing; the schedule rules."""

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

    The protocol of the study's experiment 1. An outcome without a number is not repeated.
    """

    def __init__(self, *, interval: int, count: int, start: int) -> None:
        self.interval, self.count, self.start = interval, count, start

    def wants(self, step: int) -> bool:
        """Whether `step` is one of the first `count` of its interval."""
        return step >= self.start and (step - self.start) % self.interval < self.count
