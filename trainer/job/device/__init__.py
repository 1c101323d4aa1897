"""What a run asks of the device it trains on: a stream ahead of all others, marks in it to time its work by, and how
full its memory is.
"""

from __future__ import annotations

from trainer.job.device.marks import step_clock
from trainer.job.device.memory import device_memory
from trainer.job.device.stream import training_stream

__all__ = ["device_memory", "step_clock", "training_stream"]
