"""One measured step of a small model, for the tests of what may stand in the way of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stepsize import Estimate, StepSizeWorker

LOSS = nn.BCEWithLogitsLoss()


def rows_of(columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of 64 rows, inputs (2, 64, columns) and labels (2, 64) that the first column decides."""
    x = torch.randn(2, 64, columns, generator=torch.Generator().manual_seed(seed))
    return x, (x[..., 0] > 0).float()


def mlp(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), *(layers or (nn.ReLU(),)), nn.Linear(16, 1), nn.Flatten(0))


def one_estimate(model: nn.Module, x, y, *, run: Any = None, **options) -> Estimate:
    """One SGD step on batch 0, measured on batch 1; `run` is what the training loop calls, the model by default."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(run or model, optimizer, LOSS, **options)
    LOSS((run or model)(x[0]), y[0]).backward()
    with worker.around_step(x[1], y[1], train_inputs=x[0], train_targets=y[0], step=0):
        optimizer.step()
    [estimate] = worker.poll()
    return estimate


def assert_same(found: Estimate, expected: Estimate) -> None:
    assert found.outcome is expected.outcome
    assert found.slope == pytest.approx(expected.slope, rel=1e-4)
    assert found.curvature == pytest.approx(expected.curvature, rel=1e-4)
