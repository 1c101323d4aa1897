"""What a run asks of the device it trains on: a stream ahead of all others, and marks in it to time its work by."""

from __future__ import annotations

from trainer.job.device.marks import step_clock
from trainer.job.device.stream import training_stream

__all__ = ["step_clock", "training_stream"]
