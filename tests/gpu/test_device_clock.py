"""The step clock of a run on the device: its phases are the wall time, and a late feed is what it says bounds it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.device_clock import DeviceClock
from ops.step_clock import BoundKind, StepClock
from tests.gpu.runs import PairsOf, settings, trained
from trainer.job import step_clock

DELAY_SECONDS = 0.05
"""Much longer than a step of the small model here."""


def late(_: Any) -> None:
    threading.Event().wait(DELAY_SECONDS)


def run(data: Path, device: str, **options: Any) -> StepClock:
    clock = step_clock(torch.device(device))
    began = time.perf_counter()
    trained(settings(data, policy="observe"), device, clock=clock, **options)
    wall = time.perf_counter() - began
    assert sum(clock.totals().values()) <= wall
    return clock


def test_a_late_feed_is_what_bounds_the_run(data: Path, device: str) -> None:
    clock = run(data, device, pairs=lambda state: PairsOf(state, late))
    assert clock.bound().kind is BoundKind.DATA
    assert clock.bound().data_share > 0.5
    phases = clock.recent_phases()
    assert phases["data_wait"] == max(phases.values())


@pytest.mark.gpu
def test_long_work_on_the_device_is_booked_where_it_is_and_not_where_the_host_waits(data: Path) -> None:
    """Work that the device does behind the rows and before the forward pass is `other`, and no wait for rows, though
    the host is through long before it and asks for the next rows meanwhile.
    """
    cycles = 200_000_000  # about a tenth of a second

    def work(_: Any) -> None:
        torch.cuda._sleep(cycles)

    clock = run(data, "cuda", pairs=lambda state: PairsOf(state, work))
    assert isinstance(clock, DeviceClock)
    phases = clock.recent_phases()
    assert phases["data_wait"] < 0.1 * sum(phases.values())
    assert phases["other"] > 0.5 * sum(phases.values())
