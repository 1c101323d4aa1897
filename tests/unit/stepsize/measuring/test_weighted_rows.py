"""Rows that count more or less often than once: α* and its error bar are those of the weighted mean over rows."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from stepsize import (
    AutogradLoss,
    BCEWithLogits,
    Estimate,
    MeasurementError,
    MeasuringOptions,
    Outcome,
    StepSizeWorker,
    WeightedRows,
)
from stepsize.estimate import delta_method_variance
from tests.cases import CASES, parameters_of
from tests.reverse_mode import forms_by_reverse_mode, hessian_form

CASE = CASES["row_weighted_bce"]


def estimated(scale: float = 1.0, *, ones: bool = False) -> tuple[Estimate, Tensor, Tensor]:
    """α* of a step, and the slope and curvature of every row (R,), with its weight, by double backward."""
    model = CASE.model()
    inputs, targets = CASE.batch(1, rows=60)
    train_inputs, train_targets = CASE.batch(2, rows=60)
    if ones:
        targets[:, 1] = 1.0
    targets[:, 1] *= scale
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    CASE.torch_loss(model(*train_inputs), train_targets).backward()
    before = parameters_of(model)
    worker = StepSizeWorker(model, optimizer, CASE.loss)
    with worker.around_step(inputs, targets, step=0):
        optimizer.step()
    [estimate] = worker.poll(step=0)
    change = {name: after.detach() - before[name] for name, after in model.named_parameters()}

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, inputs)

    z, tangent = torch.func.jvp(logits, (before,), (change,))[:2]
    p = z.sigmoid()
    return estimate, targets[:, 1] * (p - targets[:, 0]) * tangent, targets[:, 1] * p * (1 - p) * tangent**2


def test_the_error_bar_is_that_of_means_of_weighted_rows() -> None:
    estimate, slopes, curvatures = estimated()
    assert estimate.outcome in (Outcome.OK, Outcome.ASCENT)
    assert estimate.slope == pytest.approx(slopes.mean().item(), rel=1e-10)
    assert estimate.curvature == pytest.approx(curvatures.mean().item(), rel=1e-10)
    covariance = torch.cov(torch.stack([slopes, curvatures])) / len(slopes)
    factor = -slopes.mean().item() / curvatures.mean().item()
    variance = delta_method_variance(
        factor, curvatures.mean().item(), *(covariance[i].item() for i in ((0, 0), (1, 1), (0, 1)))
    )
    assert estimate.standard_error == pytest.approx(math.sqrt(variance), rel=1e-9)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_the_forms_are_those_of_a_backward_pass_and_of_curvlinops(curvature: str) -> None:
    model = CASE.model()
    batch, (train_inputs, train_targets) = CASE.batch(1, rows=60), CASE.batch(2, rows=60)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    CASE.torch_loss(model(*train_inputs), train_targets).backward()
    before, origin = parameters_of(model), copy.deepcopy(model)
    worker = StepSizeWorker(model, optimizer, CASE.loss, MeasuringOptions(curvature=curvature))
    with worker.around_step(*batch, step=0):
        optimizer.step()
    [estimate] = worker.poll(step=0)
    change = {name: after.detach() - before[name] for name, after in model.named_parameters()}
    slope, expected = forms_by_reverse_mode(CASE, origin, change, *batch)
    if curvature == "hessian":
        expected = hessian_form(CASE, origin, change, *batch)
    assert estimate.slope == pytest.approx(slope, rel=1e-10)
    assert estimate.curvature == pytest.approx(expected, rel=1e-8)


def test_a_common_factor_of_all_weights_changes_nothing() -> None:
    one, other = estimated()[0], estimated(1024.0)[0]
    assert other.relative == one.relative
    assert other.standard_error == pytest.approx(one.standard_error, rel=1e-12)


def test_weights_of_one_are_none() -> None:
    weighted, _, _ = estimated(ones=True)
    model = CASE.model()
    (inputs, targets), (train_inputs, train_targets) = CASE.batch(1, rows=60), CASE.batch(2, rows=60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    CASE.torch_loss(model(*train_inputs), train_targets).backward()
    worker = StepSizeWorker(model, optimizer, BCEWithLogits())
    with worker.around_step(inputs, targets[:, 0], step=0):
        optimizer.step()
    [plain] = worker.poll(step=0)
    assert (weighted.slope, weighted.curvature, weighted.standard_error) == (
        plain.slope,
        plain.curvature,
        plain.standard_error,
    )


def test_what_rounding_leaves_is_no_curvature_whatever_the_weights() -> None:
    """The curvature's bound is the weighted rows': a row of little weight that moves much lends it nothing."""
    loss = WeightedRows(BCEWithLogits())
    z = torch.tensor([0.5, -1.0, 2.0])
    t = torch.tensor([1.0, 1e-3, 1e-3])
    y = torch.tensor([[1.0, 1e-6], [0.0, 1.0], [1.0, 1.0]])
    bound = loss.curvature_error(z, y, t, 1e-7)
    torch.testing.assert_close(bound, 2e-7 * loss.curvature(z, y, t))
    assert bound[0] < 1e-12


def test_targets_without_weights_are_refused() -> None:
    with pytest.raises(Exception, match=r"WeightedRows: targets \(5,\); give \(R, 2\)"):
        WeightedRows(BCEWithLogits()).per_sample(torch.zeros(5), torch.zeros(5))


class ScaledSquares(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (self.scale * z - y) ** 2


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_loss_whose_own_weights_move_is_refused_beneath_the_weights_of_rows_too(wrapped: bool) -> None:
    own = ScaledSquares()
    loss = WeightedRows(AutogradLoss(own)) if wrapped else AutogradLoss(own)
    linear = nn.Linear(3, 1)
    model = nn.Sequential(linear, nn.Flatten(0))
    both = torch.optim.SGD([*linear.parameters(), *own.parameters()], lr=0.1)
    with pytest.raises(MeasurementError, match="moved by the optimizer"):
        StepSizeWorker(model, both, loss)
    worker = StepSizeWorker(model, torch.optim.SGD(linear.parameters(), lr=0.1), loss, self_check=False)
    x, y = torch.randn(8, 3), torch.randn(8)
    own(model(x), y).mean().backward()
    assert worker.before_step(x, torch.stack([y, torch.ones(8)], 1) if wrapped else y, step=0)
    for weight in linear.parameters():
        assert weight.grad is not None
        weight.data -= 0.1 * weight.grad
    with torch.no_grad():
        own.scale.add_(1.0)
    with pytest.raises(MeasurementError, match="changed during the step"):
        worker.after_step()
