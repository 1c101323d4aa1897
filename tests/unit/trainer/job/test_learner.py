"""Whether all weights are finite, asked of the device once however many there are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.job.learner import Learner
from trainer.learner import TrainingPrecision


def learner() -> Learner:
    model = nn.ModuleDict({"first": nn.Linear(3, 5), "last": nn.Linear(5, 1).double()})
    model.register_parameter("none", nn.Parameter(torch.empty(0)))
    return Learner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters()),
        average=None,
        table_rows=1,
        tables=1,
        device=torch.device("cpu"),
        precision=TrainingPrecision(),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["first.weight", "first.bias", "last.weight", "last.bias"])
def test_one_number_that_is_not_finite_is_found(name: str, value: float) -> None:
    found = learner()
    assert found.finite()
    with torch.no_grad():
        found.model.get_parameter(name).view(-1)[-1] = value
    assert not found.finite()


def test_large_numbers_of_any_type_are_finite() -> None:
    found = learner()
    with torch.no_grad():
        found.model.get_parameter("first.weight").fill_(torch.finfo(torch.float32).max)
        found.model.get_parameter("last.weight").fill_(torch.finfo(torch.float64).max)
    assert found.finite()


class Answers(TorchDispatchMode):
    """Counts what brings a number to the host, for which it would wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def test_the_host_waits_once() -> None:
    with Answers() as answers:
        assert learner().finite()
    assert answers.count == 1
