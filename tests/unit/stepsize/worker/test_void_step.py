"""A step that was measured and then not made gives no estimate, rather than one that calls steps too short."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stepsize import StepSizeWorker
from stepsize.estimate import Outcome
from tests.lanes import LaggingLane


@pytest.mark.parametrize("method", ["jvp", "secant"])
@pytest.mark.parametrize("lag", [0, 2])
def test_a_step_that_was_not_made_is_dropped(method: Any, lag: int) -> None:
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 1), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lane = LaggingLane(lag)
    worker = StepSizeWorker(model, optimizer, loss, delay=lag, lane=lane, method=method)
    found = []
    for step, made in enumerate((True, False, True)):
        x, y = torch.randn(2, 32, 4), torch.randint(2, (2, 32, 1)).float()
        optimizer.zero_grad()
        loss(model(x[0]), y[0]).backward()
        assert worker.before_step(x[1], y[1], step=step)
        flag = torch.tensor(0.0 if made else 1.0)
        if made:
            optimizer.step()
        worker.after_step(void=flag)
        flag.fill_(7.0)  # its memory is the caller's again
        lane.tick()
        found += worker.poll(step=step)
    found += worker.flush(step=2)
    assert [estimate.outcome is Outcome.DROPPED for estimate in found] == [False, True, False]
    assert found[1].learning_rate == 0.1
