"""The optimizers that step, whichever library they are from: what is needed of them, and what cannot be measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from stepsize.errors import MeasurementError


class Steps(Protocol):
    """What is needed of an optimizer: its parameter groups, each with `params` and `lr`."""

    param_groups: list[dict[str, Any]]


def optimizers_of(given: Steps | Sequence[Steps]) -> list[Steps]:
    """The optimizers as a list.

    Raises: MeasurementError for what has no parameter groups, and for groups without a rate.
    """
    found = list(given) if isinstance(given, Sequence) else [given]
    for one in found:
        groups = getattr(one, "param_groups", None)
        if not isinstance(groups, list) or not all(isinstance(group, dict) and "params" in group for group in groups):
            raise MeasurementError(
                f"optimizer: {type(one).__name__} has no param_groups; give the torch.optim.Optimizer that steps, or "
                "a list of them"
            )
        for index, group in enumerate(groups):
            if not isinstance(group.get("lr"), float | int | Tensor):
                raise MeasurementError(
                    f"optimizer: parameter group {index} of {type(one).__name__} has lr = {group.get('lr')!r}, so a "
                    "step length cannot be told from it; give it a rate (for Adafactor: relative_step=False, lr=1e-3)"
                )
    return found


def refuse_evaluating(optimizers: Sequence[Steps]) -> None:
    """Raises MeasurementError for a schedule-free optimizer whose weights are now those to evaluate, not to train."""
    for one in optimizers:
        modes = [getattr(one, "train_mode", True), *(group.get("train_mode", True) for group in one.param_groups)]
        if False in modes:
            raise MeasurementError(
                f"optimizer: {type(one).__name__} is in evaluation mode, so its weights are not those it steps from; "
                "call optimizer.train() before the step"
            )
