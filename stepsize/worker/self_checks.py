"""When a measurement is held against a backward pass: the first ones, until one has told something."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stepsize.losses import Loss
from stepsize.measuring import Batch, ForwardContext, SelfCheck, Snapshot, Steps

CHECKS = 10
"""Measurements after which a self-check that had nothing to compare, the steps having moved nothing, is given up."""


class SelfChecks:
    """Makes the self-check of a measurement, while one is due; none is where it is not `possible`."""

    def __init__(self, *, due: bool, possible: bool = True) -> None:
        self._possible = possible
        self._left = CHECKS if due and possible else 0

    def renew(self) -> None:
        """They are due once more."""
        self._left = CHECKS if self._possible else 0

    def begin(
        self,
        model: nn.Module,
        loss: Loss,
        optimizers: Sequence[Steps],
        batch: Batch,
        snapshot: Snapshot,
        *,
        context: ForwardContext,
    ) -> SelfCheck | None:
        """That of the step which `snapshot` was taken before; None if none is due."""
        if not self._left:
            return None
        return SelfCheck.of_step(model, loss, optimizers, batch, snapshot, context=context)

    def compared(self, check: SelfCheck) -> None:
        """The measurement has been held against `check`."""
        self._left = 0 if check.told else self._left - 1
