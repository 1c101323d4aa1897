"""One run: put together, resumed, observed and stopped."""

from __future__ import annotations

from trainer.job.assembly import Parts, evaluate_run
from trainer.job.daemon import train
from trainer.job.run_directory import FIXED_SECTIONS
from trainer.job.signals import stop_signals

__all__ = [
    "FIXED_SECTIONS",
    "Parts",
    "evaluate_run",
    "stop_signals",
    "train",
]
