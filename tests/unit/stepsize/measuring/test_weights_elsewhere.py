"""Weights that the loss has, or that the model reaches past its attributes: refused, or seen to hold still."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stepsize import AutogradLoss, MeasurementError, StepSizeWorker
from tests.reverse_mode import measured_and_expected

CE = nn.CrossEntropyLoss()


def batch(seed: int = 0, rows: int = 24) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=g), torch.randint(4, (rows,), generator=g)


class Margin(nn.Module):
    """A loss with class centres of its own, as for faces."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(4, 4))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        logits = 5 * functional.normalize(z, dim=1) @ functional.normalize(self.centres, dim=1).T
        return functional.cross_entropy(logits, y, reduction="none")


def step(model: nn.Module, optimizer: Any, loss: Any, **options: Any):
    worker = StepSizeWorker(model, optimizer, loss, **options)
    x, y = batch(1)
    functional.cross_entropy(model(x), y).backward()
    with worker.around_step(*batch(), step=0):
        optimizer.step()
    [estimate] = worker.poll(step=0)
    return estimate


@pytest.mark.parametrize(
    "of",
    [
        lambda margin: margin,
        lambda margin: margin.forward,
        functools.partial,
        lambda margin: lambda z, y: margin(z, 1 * y),
    ],
    ids=["module", "method", "partial", "closure"],
)
def test_a_loss_whose_weights_move_is_refused_at_once(of):
    model, margin = nn.Linear(6, 4), Margin()
    optimizer = torch.optim.SGD([*model.parameters(), *margin.parameters()], lr=0.1)
    with pytest.raises(MeasurementError, match=r"'centres' is moved by the optimizer.*last layer"):
        StepSizeWorker(model, optimizer, AutogradLoss(of(margin)))


@pytest.mark.parametrize("self_check", [True, False])
def test_a_loss_that_reads_a_moving_weight_by_a_closure_is_refused(self_check):
    model, centres = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 4))
    optimizer = torch.optim.SGD([{"params": model.parameters()}, {"params": [centres]}], lr=0.1)
    loss = AutogradLoss(lambda z, y: functional.cross_entropy(z @ centres, y, reduction="none"))
    with pytest.raises(MeasurementError, match=r"number 0 of parameter group 1, of shape \(4, 4\)"):
        step(model, optimizer, loss, self_check=self_check)


def test_a_regularizer_that_reads_the_model_is_refused():
    model = nn.Linear(6, 4)
    loss = AutogradLoss(lambda z, y: functional.cross_entropy(z, y, reduction="none") + model.weight.square().sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(MeasurementError, match="'weight'"):
        step(model, optimizer, loss, self_check=False)


def test_a_loss_with_weights_that_hold_still_is_measured():
    margin = Margin().double().requires_grad_(False)
    (x1, y1), (x2, y2) = batch(), batch(1)
    estimate, slope, curvature = measured_and_expected(
        nn.Sequential(nn.Linear(6, 4), nn.Tanh()).double(),
        lambda z, y: margin(z, y).mean(),
        ((x1.double(),), y1),
        ((x2.double(),), y2),
        loss=AutogradLoss(margin),
    )
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)


class ByAList(nn.Module):
    """Its second layer stands in a plain list, beside or instead of a registered place."""

    def __init__(self, *, registered: bool) -> None:
        super().__init__()
        layer = nn.Linear(8, 4)
        self.first, self.layers = nn.Linear(6, 8), [layer]
        if registered:
            self.second = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](self.first(x).tanh())


class ByAListOfWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.weights = [self.second.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).tanh() @ self.weights[0].T + self.second.bias


def by_a_closure() -> nn.Module:
    weight = nn.Parameter(torch.randn(8, 4))

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), weight

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).tanh() @ weight

    return Closed()


@pytest.mark.parametrize("self_check", [True, False])
@pytest.mark.parametrize(
    "make",
    [lambda: ByAList(registered=False), ByAListOfWeights, by_a_closure],
    ids=["list of modules", "list of weights", "closure"],
)
def test_weights_read_past_the_module_s_attributes_are_refused(make, self_check):
    model = make()
    extra = [] if hasattr(model, "second") else list(model.layers[0].parameters())
    optimizer = torch.optim.SGD([*model.parameters(), *extra], lr=0.1)
    with pytest.raises(MeasurementError, match=r"nn\.ParameterList|register it"):
        step(model, optimizer, CE, self_check=self_check)


def test_a_list_of_registered_modules_is_as_good_as_their_places():
    (x1, y1), (x2, y2) = batch(), batch(1)
    estimate, slope, curvature = measured_and_expected(
        ByAList(registered=True).double(), CE, ((x1.double(),), y1), ((x2.double(),), y2)
    )
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)


def test_the_optimizer_may_move_weights_that_the_loss_does_not_depend_on():
    """One optimizer over two networks, of which this loss sees one."""
    torch.manual_seed(0)
    model, other = nn.Linear(6, 4), nn.Linear(3, 3)
    alone = step(model, torch.optim.SGD(model.parameters(), lr=0.1), CE)
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    both = step(model, torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1), CE)
    assert (both.slope, both.curvature) == (alone.slope, alone.curvature)


def test_a_loss_whose_weights_another_optimizer_moves_during_the_step_is_refused():
    model, margin = nn.Linear(6, 4), Margin()
    one, two = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(margin.parameters(), lr=0.1)
    worker = StepSizeWorker(model, one, AutogradLoss(margin))
    x, y = batch(1)
    margin(model(x), y).mean().backward()
    worker.before_step(*batch(), step=0)
    one.step()
    two.step()
    with pytest.raises(MeasurementError, match=r"'centres of the loss' changed during the step"):
        worker.after_step()


def test_a_weight_that_something_else_moves_during_the_step_is_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    one, two = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2]))
    worker = StepSizeWorker(model, one, CE)
    x, y = batch(1)
    CE(model(x), y).backward()
    worker.before_step(*batch(), step=0)
    one.step()
    two.step()
    with pytest.raises(MeasurementError, match=r"'2\.weight' changed during the step.*every optimizer"):
        worker.after_step()
    worker = StepSizeWorker(model, [one, two], CE)
    with worker.around_step(*batch(), step=1):
        one.step()
        two.step()
    assert worker.poll()[0].relative is not None
