"""Marks in the stream of a CUDA device, by which the step clock times the device's work."""

from __future__ import annotations

from typing import Any

import torch

from ops.device_clock import DeviceClock
from ops.step_clock import StepClock


class TimingEvents:
    """Marks of a `DeviceClock` as timing events on the current stream of a CUDA device.

    Who waits for one leaves the core to others: the events are blocking, not spun on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()

    def done(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def nanoseconds(self, earlier: torch.cuda.Event, later: torch.cuda.Event) -> int:
        """CUDA gives milliseconds, to about half a microsecond."""
        return round(earlier.elapsed_time(later) * 1_000_000)


def step_clock(device: torch.device, **settings: Any) -> StepClock:
    """The clock of a run that trains on `device`: the device's own on CUDA, the host's elsewhere.

    `settings` as those of `StepClock`.
    """
    return DeviceClock(TimingEvents(device), **settings) if device.type == "cuda" else StepClock(**settings)
