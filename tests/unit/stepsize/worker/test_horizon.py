"""α_K against a backward pass at the snapshot, its error bar, what it says of noise, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from stepsize import Estimate, Horizon, MeasurementError, Outcome, SquaredError, StepSizeWorker
from tests.cases import CASES, Case, parameters_of
from tests.lanes import LaggingLane
from tests.reverse_mode import forms_by_reverse_mode
from trainer.learner.nadamw import NAdamW
from trainer.learner.tables import LazyNAdamW, keep_by_rows

STEPS = 5
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2),
}


Probe = tuple[Any, Any]
NONE: Probe = (None, None)


def train(case: Case, model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        inputs, targets = case.batch(100 + step)
        case.torch_loss(model(*inputs), targets).backward()
        optimizer.step()


@pytest.mark.parametrize("ahead", [False, True], ids=["tables whole", "probe known ahead"])
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_reverse_mode_value_at_the_snapshot(name: str, optimizer_name: str, ahead: bool) -> None:
    case = CASES[name]
    model = case.model()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    train(case, model, optimizer, range(3))
    worker = StepSizeWorker(model, optimizer, case.loss)
    horizon, probe = Horizon(worker), case.batch(7)
    before = parameters_of(model)
    horizon.keep(*(probe if ahead else NONE), step=3)
    train(case, model, optimizer, range(3, 3 + STEPS))
    change = {name: value - before[name] for name, value in parameters_of(model).items()}
    assert horizon.measure(*(NONE if ahead else probe), step=3 + STEPS)
    [estimate] = worker.poll(step=3 + STEPS)
    model.load_state_dict(before, strict=False)
    slope, curvature = forms_by_reverse_mode(case, model, change, *probe)
    assert (estimate.slope, estimate.curvature) == pytest.approx((slope, curvature), rel=1e-10)
    assert (estimate.horizon, estimate.step, estimate.age) == (STEPS, 2 + STEPS, 1)


@pytest.mark.parametrize("ahead", [False, True])
def test_training_is_bit_for_bit_what_it_is_without(ahead: bool) -> None:
    found = []
    for measuring in (False, True):
        case = CASES["dlrm_bce"]
        model = case.model()
        optimizer = OPTIMIZERS["adagrad"](model.parameters())
        horizon = Horizon(StepSizeWorker(model, optimizer, case.loss))
        for step in range(12):
            if measuring and step % 4 == 0:
                horizon.forget(step - 4)
                horizon.keep(*(case.batch(step) if ahead else NONE), step=step)
            train(case, model, optimizer, range(step, step + 1))
            if measuring and step % 4 == 3:
                assert horizon.measure(*(NONE if ahead else case.batch(step)), step=step + 1)
        found.append((parameters_of(model), torch.get_rng_state()))
    (plain, state), (measured, state_after) = found
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    assert torch.equal(state, state_after)


def test_a_table_kept_by_rows_gives_what_a_dense_one_gives() -> None:
    found = []
    for lazy in (False, True):
        case = CASES["dlrm_bce"]
        model = case.model().float()
        if lazy:
            keep_by_rows(model)
        optimizer = (LazyNAdamW if lazy else NAdamW)(model.parameters(), lr=1e-2)
        worker = StepSizeWorker(model, optimizer, case.loss)
        horizon = Horizon(worker)

        def single(seed: int, case: Case = case) -> Any:
            (dense, ids), targets = case.batch(seed)
            return (dense.float(), ids), targets.float()

        for step in range(20):
            if step in (4, 10):
                horizon.keep(*(single(1) if step == 10 else NONE), step=step)
            optimizer.zero_grad()
            (dense, ids), targets = single(100 + step)
            case.torch_loss(model(dense, ids), targets).backward()
            optimizer.step()
        horizon.measure(*single(2), step=20, since=4)
        horizon.measure(step=20, since=10)
        found.append(worker.poll(step=20))
    assert found[0] == found[1]
    assert [estimate.horizon for estimate in found[0]] == [16, 10]


class Line(nn.Module):
    """x (R, 6) to w·x (R,)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def line_rows(generator: torch.Generator, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of y = Σ x + noise."""
    x = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return x, x.sum(1) + torch.randn(rows, generator=generator, dtype=torch.float64)


def test_the_error_bar_covers_the_true_value() -> None:
    """2,000 trials: θ0 = 0, w* = 1, d arbitrary, so that α_K = d·w*/|d|² over all rows there are."""
    generator = torch.Generator().manual_seed(0)
    model = Line()
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters(), lr=0.1), SquaredError())
    horizon = Horizon(worker)
    horizon.keep(step=0)
    d = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.4, 0.2], dtype=torch.float64)
    with torch.no_grad():
        model.weight.add_(d)
    true = (d.sum() / d.square().sum()).item()
    inside = 0
    for _ in range(2000):
        horizon.measure(*line_rows(generator, 256), step=9)
        [estimate] = worker.poll(step=9)
        assert estimate.relative is not None
        assert estimate.standard_error is not None
        inside += abs(estimate.relative - true) < 1.96 * estimate.standard_error
    assert 0.93 <= inside / 2000 <= 0.97


@pytest.mark.parametrize(("k", "momentum"), [(64, 0.8), (128, 0.0)])
def test_of_noise_around_the_minimum_it_is_one_half(k: int, momentum: float) -> None:
    """The process that only rattles, K beyond its memory; slopes and curvatures pooled over many horizons."""
    generator = torch.Generator().manual_seed(k)
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
    worker = StepSizeWorker(model, optimizer, SquaredError())
    horizon, slopes, curvatures = Horizon(worker), [], []
    for step in range(40 * k):
        if step and step % k == 0:
            if horizon.steps:
                horizon.measure(*line_rows(generator, 4096), step=step)
                [estimate] = worker.poll(step=step)
                slopes.append(estimate.slope)
                curvatures.append(estimate.curvature)
                horizon.forget(step - k)
            horizon.keep(step=step)
        x, y = line_rows(generator, 16)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    ratio = -sum(slopes) / sum(curvatures)
    spread = math.sqrt(sum((s + ratio * q) ** 2 for s, q in zip(slopes, curvatures, strict=True))) / sum(curvatures)
    assert abs(ratio - 0.5) < 3 * spread
    assert spread < 0.06


def test_a_lagging_lane_gives_what_the_inline_one_gives() -> None:
    def estimates(**options: Any) -> list[Estimate]:
        case = CASES["dlrm_bce"]
        model = case.model()
        optimizer = OPTIMIZERS["adagrad"](model.parameters())
        worker = StepSizeWorker(model, optimizer, case.loss, delay=4, **options)
        horizon, found = Horizon(worker), []
        for step in range(30):
            if step % 10 == 0:
                horizon.keep(*case.batch(step), step=step)
            train(case, model, optimizer, range(step, step + 1))
            if step % 10 == 9:
                horizon.measure(step=step + 1)
                horizon.forget(step - 9)
            found += worker.poll(step=step)
            if "lane" in options:
                options["lane"].tick()
        return found + worker.flush(step=29)

    assert estimates(lane=LaggingLane(3)) == estimates()
    assert [(one.step, one.horizon, one.age) for one in estimates()] == [(9, 10, 4), (19, 10, 4), (29, 10, 0)]


def test_memory_is_said_and_bounded() -> None:
    case = CASES["dlrm_bce"]
    model = case.model()
    horizon = Horizon(StepSizeWorker(model, OPTIMIZERS["sgd"](model.parameters()), case.loss), most=2)
    parameters = sum(value.nbytes for value in model.parameters())
    horizon.keep(step=0)
    assert horizon.bytes == parameters
    horizon.keep(*case.batch(0), step=1)
    assert parameters < horizon.bytes < 2 * parameters, "of the table the looked up rows only"
    with pytest.raises(MeasurementError, match="snapshots of steps 0, 1, as many as most=2"):
        horizon.keep(step=2)
    horizon.forget(0)
    assert horizon.steps == (1,)


def test_what_is_wrongly_asked_for_is_refused() -> None:
    case = CASES["mlp_cross_entropy"]
    model = case.model()
    worker = StepSizeWorker(model, OPTIMIZERS["sgd"](model.parameters()), case.loss)
    horizon, probe = Horizon(worker), case.batch(0)
    with pytest.raises(MeasurementError, match="there is no snapshot; keep"):
        horizon.measure(*probe, step=1)
    horizon.keep(step=0)
    with pytest.raises(MeasurementError, match="no step lies between"):
        horizon.measure(*probe, step=0)
    with pytest.raises(MeasurementError, match="give inputs and targets here"):
        horizon.measure(step=3)
    with pytest.raises(MeasurementError, match="no snapshot of step 2; there are those of 0"):
        horizon.measure(*probe, step=3, since=2)
    with pytest.raises(MeasurementError, match="is there already"):
        horizon.keep(step=0)
    with pytest.raises(MeasurementError, match="belong together"):
        horizon.keep(probe[0], step=1)
    horizon.keep(*probe, step=1)
    with pytest.raises(MeasurementError, match="were given to keep"):
        horizon.measure(*probe, step=3, since=1)
    with pytest.raises(MeasurementError, match="give 1 or more"):
        Horizon(worker, most=0)


def test_nothing_moved_is_flat() -> None:
    case = CASES["mlp_cross_entropy"]
    model = case.model()
    worker = StepSizeWorker(model, OPTIMIZERS["sgd"](model.parameters()), case.loss)
    horizon = Horizon(worker)
    horizon.keep(step=0)
    horizon.measure(*case.batch(0), step=4)
    [estimate] = worker.poll(step=4)
    assert estimate.outcome is Outcome.FLAT
    assert estimate.horizon == 4
