"""The [budget] and [eval] sections of a configuration: when a run is over, and what is evaluated until then."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.schema import SPLITS


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """When a run is over: at whichever of these comes first."""

    steps: int | None = None
    """Optimizer steps."""
    epochs: float | None = None
    """Passes over the training split; not with data.follow, which passes every generation once."""
    seconds: float | None = None
    """Seconds of training; evaluation, checkpoints and waiting for a generation (data.follow) are not counted."""
    target_loss: float | None = None
    """Stop once the validation loss is below this."""

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "seconds", "target_loss"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"budget.{name} is {value}; give a positive number or leave it out")

    def total_steps(self, steps_per_epoch: int | None) -> int | None:
        """Steps until `steps` or `epochs` is reached, or None if neither is set.

        Raises: ValueError for epochs of a log that is followed, which has no `steps_per_epoch`.
        """
        if self.epochs is not None and steps_per_epoch is None:
            raise ValueError(
                f"budget.epochs is {self.epochs}, but with data.follow every generation is passed once; leave it out, "
                "and set budget.steps, budget.seconds or data.follow_idle_seconds if the run is to end"
            )
        # rounded, because 1.1 · 10 is a little more than 11
        by_epochs = None
        if self.epochs is not None and steps_per_epoch is not None:
            by_epochs = math.ceil(round(self.epochs * steps_per_epoch, 6))
        return min((bound for bound in (self.steps, by_epochs) if bound is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When and on what the model is evaluated; every split is also evaluated when the run ends."""

    every_steps: int | None = None
    """Evaluate after every so many steps."""
    every_seconds: float | None = None
    """Evaluate after every so many seconds of training."""
    rows: int | None = None
    """Rows of each split to evaluate on, from its start; by default all of them."""
    splits: tuple[str, ...] = ("validation", "test")
    """Splits to evaluate on; `train` may be among them."""
    progressive: bool | None = None
    """Whether rows are scored before they are trained on: loss, AUC and calibration of the training batches
    themselves, as split `progressive`, of rows that come for the first time. By default with data.follow only."""
    progressive_rows: int = 1 << 20
    """Rows that each such figure is taken over."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_seconds", "rows", "progressive_rows"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"eval.{name} is {value}; give a positive number or leave it out")
        unknown = set(self.splits) - set(SPLITS)
        if unknown:
            raise ValueError(f"eval.splits names {sorted(unknown)[0]!r}; known are {', '.join(SPLITS)}")
