"""The `stall` command: proof of what bounds the speed of training."""

from __future__ import annotations

from trainer.stall.comparison import StallReport
from trainer.stall.runs import measure_stall

__all__ = [
    "StallReport",
    "measure_stall",
]
