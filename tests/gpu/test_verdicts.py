"""What the clock says of a feed that is faster than the device, a little slower, and half as fast."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.bound import PAUSES
from ops.step_clock import StepClock
from pipeline.device import DevicePair
from tests.gpu.runs import PairsOf, clock_of, settings, trained
from trainer.job import TrainingState

STEPS = 120
WARM_UP = 20
STEP_CYCLES = 20_000_000
"""About a hundredth of a second, so that a step's other work hardly matters."""


class PacedPairs(PairsOf):
    """A pair every `interval` seconds, none ahead of its time and none made up for; each lengthens its step's work."""

    def __init__(self, state: TrainingState, interval: float, clock: StepClock) -> None:
        super().__init__(state, self._lengthen)
        self._interval, self._due, self._given = interval, 0.0, 0
        self._clock, self.before = clock, (0, 0.0, 0.0)

    def _lengthen(self, pair: DevicePair) -> None:
        torch.cuda._sleep(STEP_CYCLES)

    def __next__(self) -> DevicePair:
        if self._given == WARM_UP:
            self.before = read(self._clock)
        self._given += 1
        now = time.perf_counter()
        self._due = max(self._due + self._interval, now)
        time.sleep(self._due - now)
        return super().__next__()


def read(clock: StepClock) -> tuple[int, float, float]:
    """Steps so far, their seconds without pauses, and those of waiting for data."""
    totals = clock.totals()
    return clock.steps, sum(totals.values()) - sum(totals[name] for name in PAUSES), totals["data_wait"]


def waiting_share(data: Path, device: str, interval: float) -> tuple[float, float]:
    """The share of waiting for data over the last steps, and their mean seconds, with a pair every `interval`."""
    clock = clock_of(device)
    config = settings(data, policy="none", steps=STEPS, data={"batch_rows": 16})
    feeds: list[PacedPairs] = []

    def pairs(state: TrainingState) -> PacedPairs:
        feeds.append(PacedPairs(state, interval, clock))
        return feeds[-1]

    trained(config, device, clock=clock, pairs=pairs)
    steps, seconds, waiting = (after - before for after, before in zip(read(clock), feeds[0].before, strict=True))
    return waiting / seconds, seconds / steps


@pytest.fixture(scope="module")
def device_seconds(data: Path) -> float:
    """What a step takes with pairs at once."""
    share, seconds = waiting_share(data, "cuda", 0.0)
    assert share < 0.01
    return seconds


@pytest.mark.gpu
@pytest.mark.parametrize(("pace", "least", "most"), [(0.5, 0.0, 0.01), (1.02, 0.005, 0.05), (2.0, 0.45, 0.55)])
def test_the_share_of_waiting_is_what_the_feed_lacks(
    data: Path, device_seconds: Any, pace: float, least: float, most: float
) -> None:
    """With `pace` times the device's own time between two pairs: 1 − 1/pace of it is waiting."""
    share, _ = waiting_share(data, "cuda", pace * device_seconds)
    assert least <= share <= most
