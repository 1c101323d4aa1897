"""The loop tells the clock what its time was: waiting for rows, or for their copy to the device."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ops.step_clock import StepClock, StepTiming
from pipeline.device.feed import DevicePair
from pipeline.device.model_inputs import ModelInputs
from pipeline.rows.order import RowPosition
from stepsize.losses import BCEWithLogits
from stepsize.policies.choice import StepSizeConfig, make_policy
from stepsize.worker import StepSizeWorker
from trainer.loop import Host, Loop, Observer, Position, Timetable
from trainer.step import TrainStep

MILLISECOND = 1_000_000


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return dense @ self.weight


class CopyingFeed:
    """Takes 7 ms to hand over a pair, and 5 of them are the copy to the device."""

    def __init__(self) -> None:
        self.now = 0
        self.last_transfer_seconds = 0.0

    def __next__(self) -> DevicePair:
        self.now += 7 * MILLISECOND
        self.last_transfer_seconds = 0.005
        inputs = ModelInputs(torch.ones(4, 2), torch.zeros(3, 4, dtype=torch.int32), torch.ones(4))
        return DevicePair(b1=inputs, b2=inputs, fresh=True, epoch=0, start=0, rows=4, position=RowPosition(), skipped=0)


class Timings:
    """The observer that keeps every step's time, and a host that has nothing to do."""

    def __init__(self) -> None:
        self.steps: list[StepTiming] = []

    def on_step(self, record: dict[str, Any], timing: StepTiming, training_seconds: float) -> None:
        self.steps.append(timing)

    def on_pause(self, timing: StepTiming) -> None:
        pass

    def evaluate(self, position: Position) -> None:
        pass

    def save(self, position: Position, *, final: bool) -> None:
        pass

    def poll_save(self) -> None:
        pass

    def drain_save(self) -> None:
        pass

    def stopping(self) -> bool:
        return False


def test_the_wait_for_the_copy_is_transfer_and_not_waiting_for_data() -> None:
    feed, model, timings = CopyingFeed(), Linear(), Timings()
    clock = StepClock(nanosecond_time=lambda: feed.now)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, BCEWithLogits())
    loop = Loop(
        feed=feed,
        train_step=TrainStep(model=model, optimizer=optimizer, worker=worker, average=None, clock=clock),
        policy=make_policy(StepSizeConfig(policy="none"), initial_rate=0.1, total_steps=3),
        scheduled_rate=lambda step: 0.1,
        timetable=Timetable(total_steps=3),
        host=cast(Host, timings),
        observer=cast(Observer, timings),
    )
    loop.run()
    for timing in timings.steps:
        spent = timing.phase_nanoseconds
        assert (spent["data_wait"], spent["transfer"]) == (2 * MILLISECOND, 5 * MILLISECOND)
        assert timing.nanoseconds == 7 * MILLISECOND
    assert len(timings.steps) == 3
