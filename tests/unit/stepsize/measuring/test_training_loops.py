"""Ways to train: accumulation, scaled gradients, autocast, dropout, frozen parts, and steps that go nowhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stepsize import MeasurementError, Outcome, StepSizeWorker
from tests.cases import parameters_of
from tests.measured import LOSS, mlp, one_estimate, rows_of


def test_inference_mode_is_refused():
    model = mlp()
    x, y = rows_of(6)
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters()), LOSS)
    worker.before_step(x[1], y[1], step=0)
    with torch.inference_mode(), pytest.raises(MeasurementError, match="inference"):
        worker.after_step()


class ThroughNumpy(nn.Module):
    """Leaves torch on the way, as gradients cannot."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.inner(x).detach().numpy().copy())


def test_a_lost_tangent_is_refused():
    x, y = rows_of(6)
    model = ThroughNumpy(mlp())
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters(), lr=0.1), LOSS)
    with pytest.raises(MeasurementError, match="no tangent"), worker.around_step(x[1], y[1], step=0):
        pass


def test_batch_norm_buffers_are_left_alone():
    model = mlp(nn.BatchNorm1d(16), nn.ReLU())
    x, y = rows_of(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, LOSS, estimators=("unbiased", "biased"), diagnostics="full")
    LOSS(model(x[0]), y[0]).backward()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with worker.around_step(x[1], y[1], train_inputs=x[0], train_targets=y[0], step=0):
        optimizer.step()
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert worker.poll()[0].outcome is Outcome.OK


def test_each_batch_is_probed_under_its_own_dropout_mask():
    """B2 under the mask its gradient was taken with, B1 under the one the next forward pass draws."""
    model = mlp(nn.Dropout(0.5))
    x, y = rows_of(6)
    before = parameters_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, LOSS, estimators=("unbiased", "biased"))
    LOSS(model(x[0]), y[0]).backward()
    b2_gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with worker.around_step(x[1], y[1], train_inputs=x[0], train_targets=y[0], step=0):
        optimizer.step()
    d = {name: value - before[name] for name, value in parameters_of(model).items()}
    [estimate] = worker.poll()
    model.load_state_dict(before)
    optimizer.zero_grad()
    LOSS(model(x[1]), y[1]).backward()
    b1_gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert estimate.biased is not None
    assert estimate.biased.slope == pytest.approx(sum((d[n] * b2_gradient[n]).sum().item() for n in d), rel=1e-4)
    assert estimate.slope == pytest.approx(sum((d[n] * b1_gradient[n]).sum().item() for n in d), rel=1e-4)


def test_autocast_runs_where_the_forward_runs_and_its_rounding_counts():
    x, y = rows_of(6)
    plain = one_estimate(mlp(), x, y)
    cast = one_estimate(mlp(), x, y, forward_context=lambda: torch.autocast("cpu", torch.bfloat16))
    assert cast.slope != plain.slope
    assert cast.relative == pytest.approx(plain.relative, rel=0.05)


def test_gradient_accumulation_measures_the_accumulated_step():
    x, y = rows_of(6)
    together, split = mlp(), mlp()
    whole = one_estimate(together, x, y)
    optimizer = torch.optim.SGD(split.parameters(), lr=0.1)
    worker = StepSizeWorker(split, optimizer, LOSS)
    for part in (slice(0, 32), slice(32, 64)):
        (LOSS(split(x[0, part]), y[0, part]) / 2).backward()
    with worker.around_step(x[1], y[1], step=0):
        optimizer.step()
    assert worker.poll()[0].relative == pytest.approx(whole.relative, rel=1e-4)


@pytest.mark.parametrize("overflow", [False, True])
def test_grad_scaler_steps_are_measured_and_skipped_ones_are_flat(overflow):
    x, y = rows_of(6)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    worker = StepSizeWorker(model, optimizer, LOSS, diagnostics="full")
    scaler.scale(LOSS(model(x[0]), y[0])).backward()
    if overflow:
        next(model.parameters()).grad.fill_(torch.inf)  # pyright: ignore[reportOptionalMemberAccess]
    with worker.around_step(x[1], y[1], train_inputs=x[0], train_targets=y[0], step=0):
        scaler.step(optimizer)
    scaler.update()
    [estimate] = worker.poll()
    if overflow:
        assert estimate.outcome is Outcome.FLAT
        assert estimate.relative is None
    else:
        plain = one_estimate(mlp(), x, y, diagnostics="full")
        assert estimate.relative == pytest.approx(plain.relative, rel=1e-4)
        assert estimate.diagnostics is not None
        assert plain.diagnostics is not None
        assert estimate.diagnostics.gradient_norm_b2 == pytest.approx(plain.diagnostics.gradient_norm_b2, rel=1e-4)


def test_frozen_parameters_and_those_outside_the_optimizer_hold_still():
    """The estimate is that of the moving parameters alone, wherever the others come from."""
    x, y = rows_of(6)
    model = mlp(nn.Linear(16, 16))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[1].parameters()], lr=0.1)
    worker = StepSizeWorker(model, optimizer, LOSS)
    LOSS(model(x[0]), y[0]).backward()
    with worker.around_step(x[1], y[1], step=0):
        optimizer.step()
    [estimate] = worker.poll()
    assert estimate.outcome is Outcome.OK
    start = mlp(nn.Linear(16, 16))
    LOSS(start(x[0]), y[0]).backward()
    change = {name: -0.1 * p.grad for name, p in start[1].named_parameters() if p.grad is not None}
    start.zero_grad()
    LOSS(start(x[1]), y[1]).backward()
    later = {name: p.grad for name, p in start[1].named_parameters() if p.grad is not None}
    slope = sum((change[name] * later[name]).sum().item() for name in change)
    assert estimate.slope == pytest.approx(slope, rel=1e-4)


def test_an_ascending_direction_has_a_negative_step_size():
    model = mlp()
    x, y = rows_of(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    worker = StepSizeWorker(model, optimizer, LOSS)
    LOSS(model(x[1]), y[1]).backward()
    with worker.around_step(x[1], y[1], step=0):
        optimizer.step()
    [estimate] = worker.poll()
    assert estimate.outcome is Outcome.ASCENT
    assert estimate.relative is not None
    assert estimate.relative < 0
    assert estimate.standard_error is not None


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_nonfinite_logits_are_an_outcome(value):
    model = mlp()
    x, y = rows_of(6)
    x[1, 3, 2] = value
    estimate = one_estimate(model, x, y)
    assert estimate.outcome is Outcome.NONFINITE
    assert (estimate.relative, estimate.absolute, estimate.standard_error) == (None, None, None)


def test_a_model_that_returns_no_tensor_is_refused():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.inner(x), None

    model = Pair()
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters()), LOSS)
    x, y = rows_of(6)
    with pytest.raises(MeasurementError, match="tuple"), worker.around_step(x[1], y[1], step=0):
        pass
