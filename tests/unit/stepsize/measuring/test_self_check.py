"""The first measurement held against a backward pass: what is found, what it costs, that it leaves no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepsize import MeasurementError, StepSizeWorker
from tests.cases import CASES, Case

CE = nn.CrossEntropyLoss()


def data(seed: int = 0, rows: int = 32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=g)
    return x, x[:, :4].argmax(1)


class Hooked(nn.Module):
    """Its gradient is `factor` times its derivative in the hidden layer; counts its forward passes."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.a, self.b, self.factor = nn.Linear(6, 8), nn.Linear(8, 4), factor

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        COUNTED["passes"] += 1
        if h.requires_grad:
            h.register_hook(lambda g: self.factor * g)
        return self.b(h)


COUNTED = {"passes": 0}


def step(worker: StepSizeWorker, optimizer: torch.optim.Optimizer, number: int = 0) -> None:
    with worker.around_step(*data(number), step=number):
        optimizer.step()


def prepared(model: nn.Module, **options: Any) -> tuple[StepSizeWorker, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, CE, **options)
    x, y = data(7)
    CE(model(x), y).backward()
    return worker, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tables", ["rows", "dense"])
def test_models_that_are_what_they_seem_pass(name, dtype, tables):
    case: Case = CASES[name]
    model = case.model().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    worker = StepSizeWorker(model, optimizer, case.loss, tables=tables)

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    for number in range(3):
        inputs, targets = case.batch(2 + number)
        optimizer.zero_grad()
        case.torch_loss(model(*map(cast, inputs)), cast(targets)).backward()
        inputs, targets = case.batch(number)
        worker.check_next()
        with worker.around_step(tuple(map(cast, inputs)), cast(targets), step=number):
            optimizer.step()
    assert len(worker.poll()) == 1 + 2


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, -1.0])
def test_a_gradient_that_is_not_the_derivative_is_found(factor):
    worker, optimizer = prepared(Hooked(factor))
    with pytest.raises(MeasurementError, match=r"self-check: .*hook that changes gradients.*self_check=False"):
        step(worker, optimizer)


def test_it_is_taken_at_the_weights_before_the_step():
    """A step so long that the gradient after it is another one altogether."""
    model = Hooked()
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    worker = StepSizeWorker(model, optimizer, CE)
    x, y = data(7)
    CE(model(x), y).backward()
    step(worker, optimizer)
    assert worker.poll()[0].slope is not None


def test_it_can_be_switched_off_and_asked_for_again():
    worker, optimizer = prepared(Hooked(0.5), self_check=False)
    step(worker, optimizer)
    worker.check_next()
    with pytest.raises(MeasurementError, match="self-check"):
        step(worker, optimizer, 1)


def passes_of(count: int, **options: Any) -> list[int]:
    worker, optimizer = prepared(Hooked(), **options)
    found = []
    for number in range(count):
        COUNTED["passes"] = 0
        step(worker, optimizer, number)
        found.append(COUNTED["passes"])
    return found


def test_it_costs_one_more_pass_once():
    assert passes_of(4) == [2, 1, 1, 1]
    assert passes_of(2, self_check=False) == [1, 1]
    assert passes_of(2, method="secant") == [2, 2], "which is no derivative"


def test_a_step_that_moves_nothing_leaves_it_to_the_next_but_not_for_ever():
    worker, optimizer = prepared(Hooked(0.5))
    for number in range(3):
        with worker.around_step(*data(number), step=number):
            pass
    with pytest.raises(MeasurementError, match="self-check"):
        step(worker, optimizer, 3)
    worker, _ = prepared(Hooked())
    found = []
    for number in range(12):
        COUNTED["passes"] = 0
        with worker.around_step(*data(number), step=number):
            pass
        found.append(COUNTED["passes"])
    assert found == [2] * 10 + [1] * 2


class Everything(nn.Module):
    """Normalization, dropout, a sparse table; ids (R, 3) to (R, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 6, sparse=True)
        self.layers = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(self.table(ids).mean(1))


def test_it_leaves_no_trace():
    torch.manual_seed(0)
    model = Everything()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, CE)
    ids, y = torch.randint(300, (2, 32, 3)), torch.randint(4, (2, 32))
    CE(model(ids[0]), y[0]).backward()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    versions = {name: p._version for name, p in model.named_parameters()}
    worker.before_step(ids[1], y[1], step=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p._version for name, p in model.named_parameters()} == versions
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad.to_dense(), gradients[name].to_dense())
    assert model.training
    optimizer.step()
    worker.after_step()
    assert torch.equal(torch.get_rng_state(), state)
    assert worker.poll()[0].slope is not None


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_coarse_rounding_is_no_fault_but_a_wrong_gradient_is(precision):
    for factor, message in ((1.0, None), (-20.0, "self-check")):
        model = Hooked(factor)
        context: Any = {} if precision is None else {"forward_context": lambda: torch.autocast("cpu", precision)}
        worker, optimizer = prepared(model, **context)
        if message is None:
            step(worker, optimizer)
        else:
            with pytest.raises(MeasurementError, match=message):
                step(worker, optimizer)


def test_a_model_in_bfloat16_inside_passes():
    """Its logits are float32, its rounding is not."""

    class Inside(Hooked):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    for seed in range(5):
        torch.manual_seed(seed)
        worker, optimizer = prepared(Inside())
        step(worker, optimizer)
        assert worker.poll()[0].slope is not None
