"""The `stall` command: proof of what bounds the speed of training.

For example:

    report = measure_stall(config, steps=None, seconds=10.0, warmup_steps=10, console=Console())
    print(report.verdict)
"""

from __future__ import annotations

from trainer.stall.comparison import StallReport
from trainer.stall.trials import measure_stall

__all__ = [
    "StallReport",
    "measure_stall",
]
