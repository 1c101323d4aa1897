"""The [checkpoint] section of a configuration; importing it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The `[checkpoint]` section: how often a run can be continued from, and how many such points are kept.

    A checkpoint in the middle of a run is written while training goes on, from a copy of weights, average and optimizer
    state in the host's memory; without memory for it, training waits.
    """

    every_steps: int | None = None
    """Save after every so many steps; a run saves when it ends or is stopped in any case."""
    every_seconds: float | None = 600.0
    """Save after every so many seconds of training."""
    keep: int = 3
    """Newest checkpoints to keep."""
    keep_best: bool = True
    """Keep, beside these, the last checkpoint up to the best validation loss."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"checkpoint.{name} is {value}; give a positive number or leave it out")
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep is {self.keep}; keep at least 1")
