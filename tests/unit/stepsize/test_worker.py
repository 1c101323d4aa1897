"""α* around an optimizer step: agreement with reverse mode, at θ0, from B1 alone, leaving training as it was."""

from __future__ import annotations

import doctest
import json

import pytest
import torch
from torch import nn

import stepsize.worker.worker
from stepsize import MeasurementError, Outcome, SquaredError, StepSizeWorker
from tests.cases import CASES, Case, parameters_of
from tests.reverse_mode import forms_by_reverse_mode


def train_one_step(case: Case, **options) -> tuple[StepSizeWorker, nn.Module, dict, dict]:
    """A worker's look at one AdamW step on B2 (seed 2) probed with B1 (seed 1); also θ0's model and d."""
    model = case.model()
    dense = [p for name, p in model.named_parameters() if not name.startswith("own.")]
    sparse = [p for name, p in model.named_parameters() if name.startswith("own.")]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(dense, lr=3e-3, weight_decay=0.1)]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(sparse, lr=3e-3))
    worker = StepSizeWorker(model, optimizers, case.loss, **options)
    for step in range(2):  # the second step is measured by what the first pass learned, with moving moments
        before = parameters_of(model)
        inputs, targets = case.batch(2 + 2 * step)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            case.torch_loss(model(*inputs), targets).backward()
        b1 = case.batch(1 + 2 * step)
        with worker.around_step(*b1, train_inputs=inputs, train_targets=targets, step=step):
            for optimizer in optimizers:
                optimizer.step()
        for parameter in model.parameters():
            parameter.grad = None
    after = parameters_of(model)
    origin = case.model()
    origin.load_state_dict(before, strict=False)
    return worker, origin, {name: after[name] - before[name] for name in after}, {"b1": b1, "b2": (inputs, targets)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tables", ["rows", "dense"])
def test_equals_backward_and_curvlinops(name, tables):
    case = CASES[name]
    worker, origin, d, batches = train_one_step(case, estimators=("unbiased", "biased", "hybrid"), tables=tables)
    estimate = worker.poll()[-1]
    assert estimate.biased is not None
    assert estimate.hybrid is not None
    slope, curvature = forms_by_reverse_mode(case, origin, d, *batches["b1"])
    assert estimate.slope == pytest.approx(slope, rel=1e-10)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-10)
    assert estimate.relative == pytest.approx(-slope / curvature, rel=1e-10)
    assert estimate.absolute == pytest.approx(-slope / curvature * 3e-3, rel=1e-10)
    slope2, curvature2 = forms_by_reverse_mode(case, origin, d, *batches["b2"])
    assert estimate.biased.slope == pytest.approx(slope2, rel=1e-10)
    assert estimate.biased.curvature == pytest.approx(curvature2, rel=1e-10)
    assert estimate.hybrid.relative == pytest.approx(-slope / curvature2, rel=1e-10)


def test_thesis_sanity_check_lands_on_the_target():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.3)
    x, y = torch.tensor([[2.0]]).double(), torch.tensor([[5.0]]).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    worker = StepSizeWorker(model, optimizer, SquaredError(halved=True))
    before = model.weight.detach().clone()
    (0.5 * (model(x) - y).square()).sum().backward()
    with worker.around_step(x, y, step=0):
        optimizer.step()
    [estimate] = worker.poll()
    assert estimate.relative is not None
    with torch.no_grad():
        model.weight.copy_(before + estimate.relative * (model.weight - before))
    assert model.weight.item() == pytest.approx(2.5, abs=1e-6)
    assert 0.5 * (model(x) - y).square().item() < 1e-6
    assert estimate.standard_error is None, "one row has no spread"


def test_curvature_and_slope_are_taken_before_the_step():
    """θ1's own numbers differ by far more than the tolerance, so a late evaluation cannot pass."""
    case = CASES["mlp_cross_entropy"]
    model = case.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    worker = StepSizeWorker(model, optimizer, case.loss)
    before = parameters_of(model)
    inputs, targets = case.batch(2)
    case.torch_loss(model(*inputs), targets).backward()
    with worker.around_step(*case.batch(1), step=0):
        optimizer.step()
    after = parameters_of(model)
    d = {name: after[name] - before[name] for name in after}
    late_slope, late_curvature = forms_by_reverse_mode(case, model, d, *case.batch(1))
    model.load_state_dict(before)
    slope, curvature = forms_by_reverse_mode(case, model, d, *case.batch(1))
    assert late_curvature != pytest.approx(curvature, rel=1e-2)
    assert late_slope != pytest.approx(slope, rel=1e-2)
    [estimate] = worker.poll()
    assert estimate.curvature == pytest.approx(curvature, rel=1e-10)
    assert estimate.slope == pytest.approx(slope, rel=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"diagnostics": "full"}, {"curvature": "hessian"}, {"method": "secant"}, {"per_group": True}]
)
def test_the_direction_does_not_depend_on_b1(options):
    """Whatever B1 is, the weights after the step are the same: no gradient or moment has seen it."""
    case = CASES["dlrm_bce"]
    ends = []
    for probe_seed in (1, 99):
        model = case.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        worker = StepSizeWorker(model, optimizer, case.loss, **options)
        for step in range(3):
            inputs, targets = case.batch(2 + step)
            optimizer.zero_grad()
            case.torch_loss(model(*inputs), targets).backward()
            with worker.around_step(*case.batch(100 * probe_seed + step), step=step):
                optimizer.step()
        ends.append(parameters_of(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def end_of_training(*, probe: bool) -> torch.Tensor:
    """Weights, running statistics and the next random numbers after four steps with dropout and BatchNorm."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = nn.CrossEntropyLoss()
    worker = StepSizeWorker(model, optimizer, loss, estimators=("unbiased", "biased"))
    x, y = torch.randn(8, 32, 6), torch.randint(3, (8, 32))
    for step in range(4):
        optimizer.zero_grad()
        loss(model(x[step]), y[step]).backward()
        if not probe:
            optimizer.step()
            continue
        with worker.around_step(x[step + 1], y[step + 1], train_inputs=x[step], train_targets=y[step], step=step):
            optimizer.step()
    assert len(worker.poll()) == (4 if probe else 0)
    return torch.cat([*(value.double().flatten() for value in model.state_dict().values()), torch.rand(3).double()])


def test_training_is_bit_for_bit_the_same_with_and_without():
    assert torch.equal(end_of_training(probe=True), end_of_training(probe=False))


@pytest.mark.parametrize("name", ["dlrm_bce", "attention", "several_tables"])
def test_the_same_steps_give_the_same_estimates_to_the_bit(name):
    first, second = (train_one_step(CASES[name], estimators=("unbiased", "biased"))[0].poll() for _ in range(2))
    assert first == second


def test_an_exception_in_the_step_leaves_nothing_behind():
    case = CASES["dlrm_bce"]
    model = case.model()
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters(), lr=1.0), case.loss)
    with pytest.raises(ZeroDivisionError), worker.around_step(*case.batch(1), step=0):
        raise ZeroDivisionError
    worker.after_step()
    assert worker.poll() == []


def test_age_and_staleness():
    case = CASES["mlp_cross_entropy"]
    model = case.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, case.loss, max_age=2)
    for step in (3, 4):
        inputs, targets = case.batch(2)
        case.torch_loss(model(*inputs), targets).backward()
        with worker.around_step(*case.batch(1), step=step):
            optimizer.step()
    old, young = worker.poll(step=6)
    assert (old.age, old.outcome) == (3, Outcome.STALE)
    assert old.slope is not None
    assert (young.age, young.outcome) == (2, Outcome.OK)
    assert worker.poll(step=7) == []
    state = json.loads(json.dumps(worker.state_dict()))
    fresh = StepSizeWorker(model, optimizer, case.loss)
    fresh.load_state_dict(state)
    assert fresh.counts == {"stale": 1, "ok": 1}


def test_b2_is_asked_for_where_it_is_needed():
    case = CASES["mlp_cross_entropy"]
    model = case.model()
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters()), case.loss, estimators=("biased",))
    with pytest.raises(MeasurementError, match="train_inputs"):
        worker.before_step(*case.batch(1), step=0)
    with pytest.raises(MeasurementError, match="'baised'"):
        StepSizeWorker(model, torch.optim.SGD(model.parameters()), case.loss, estimators=("baised",))  # type: ignore[arg-type]


def test_an_optimizer_of_another_model_is_refused():
    case = CASES["mlp_cross_entropy"]
    with pytest.raises(MeasurementError, match="moves none"):
        StepSizeWorker(case.model(), torch.optim.SGD(case.model().parameters()), case.loss)


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(stepsize.worker.worker)
    assert result.attempted > 5
    assert result.failed == 0
