"""The sections of a configuration on what a run leaves on disk; importing them costs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The `[checkpoint]` section: how often a run can be continued from, and how many such points are kept.

    A checkpoint in the middle of a run is written while training goes on, from a copy of weights, average and optimizer
    state in the host's memory; without memory for it, training waits.

    One that cannot be written is tried again half a minute later, then ever more seldom, at least every ten minutes; on
    a full disk older ones go for it, down to the newest whole one, if that makes room.
    """

    every_steps: int | None = None
    """Save after every so many steps; a run saves when it ends or is stopped in any case."""
    every_seconds: float | None = 600.0
    """Save after every so many seconds of training."""
    keep: int = 3
    """Newest checkpoints to keep."""
    keep_best: bool = True
    """Keep, beside these, the last checkpoint up to the best validation loss, for `evaluate --best`. From the
    second pass over the data on, an evaluation that is the best so far is followed by a checkpoint."""
    final_retry_seconds: float = 300.0
    """How long the last checkpoint of a run is tried again while it cannot be written; a second signal ends that."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"checkpoint.{name} is {value}; give a positive number or leave it out")
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep is {self.keep}; keep at least 1")
        if not 0 <= self.final_retry_seconds < math.inf:
            raise ValueError(
                f"checkpoint.final_retry_seconds is {self.final_retry_seconds}; give seconds, or 0 to try once"
            )


@dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """The `[records]` section: how long a run's records stay as they were written."""

    full_steps: int = 65_536
    """So many of the newest steps have a line each in steps.jsonl and alpha.jsonl. Older lines are merged into blocks
    of 2, 4, 8 ... steps, the longer the older, with exact sums: a week fits a few hundred megabytes. 0 merges none."""

    def __post_init__(self) -> None:
        if self.full_steps < 0:
            raise ValueError(
                f"records.full_steps is {self.full_steps}; give a number of steps, or 0 to keep every line"
            )
