"""Beyond the unbiased estimate: groups, other curvature matrices, diagnostics, fewer rows, the secant, optimizers."""

from __future__ import annotations

import math

import curvlinops
import numpy as np
import pytest
import torch
from torch import nn

from stepsize import Estimate, MeasurementError, Outcome, SquaredError, StepSizeWorker
from stepsize.measuring.handoff import Inline
from stepsize.worker import first_rows
from tests.cases import CASES, Case, parameters_of
from tests.reverse_mode import forms_by_reverse_mode, gradient_of, hessian_form

Change = dict[str, torch.Tensor]


def measured(
    case: Case, *, rows: int | None = None, make_optimizer=None, **options
) -> tuple[Estimate, nn.Module, Change]:
    """One step on B2 (seed 2) measured on B1 (seed 1): the estimate, the model back at θ0, and d."""
    model = case.model()
    optimizer = make_optimizer(model) if make_optimizer else torch.optim.Adam(model.parameters(), lr=0.01)
    worker = StepSizeWorker(model, optimizer, case.loss, **options)
    before = parameters_of(model)
    inputs, targets = case.batch(2)
    case.torch_loss(model(*inputs), targets).backward()
    with worker.around_step(*case.batch(1, rows), train_inputs=inputs, train_targets=targets, step=0):
        optimizer.step()
    change = {name: value - before[name] for name, value in parameters_of(model).items()}
    [estimate] = worker.poll()
    worker.close()
    assert not model._forward_pre_hooks
    model.load_state_dict(before, strict=False)
    return estimate, model, change


def test_each_group_has_its_own_step_size():
    case = CASES["dlrm_bce"]

    def two_groups(model: nn.Module) -> torch.optim.Optimizer:
        tables = [p for name, p in model.named_parameters() if name.startswith("table")]
        rest = [p for name, p in model.named_parameters() if not name.startswith("table")]
        return torch.optim.SGD([{"params": rest}, {"params": tables, "lr": 3.0}], lr=0.5)

    estimate, model, change = measured(case, make_optimizer=two_groups, per_group=True)
    assert estimate.groups is not None
    for group, rate, inside in ((0, 0.5, False), (1, 3.0, True)):
        part = {n: d if n.startswith("table") is inside else torch.zeros_like(d) for n, d in change.items()}
        slope, curvature = forms_by_reverse_mode(case, model, part, *case.batch(1))
        assert estimate.groups[group].slope == pytest.approx(slope, rel=1e-10)
        assert estimate.groups[group].curvature == pytest.approx(curvature, rel=1e-10)
        assert estimate.groups[group].absolute == pytest.approx(-slope / curvature * rate, rel=1e-10)
    assert estimate.slope == pytest.approx(sum(group.slope or 0 for group in estimate.groups), rel=1e-10)


@pytest.mark.parametrize("name", ["dlrm_bce", "mlp_cross_entropy", "regression_mse", "poisson_of_the_user"])
def test_the_hessian_s_form_is_the_second_derivative_along_d(name):
    case = CASES[name]
    estimate, model, change = measured(case, curvature="hessian")
    plain, _, _ = measured(case)
    expected = hessian_form(case, model, change, *case.batch(1))
    assert estimate.curvature == pytest.approx(expected, rel=1e-8)
    assert estimate.slope == pytest.approx(plain.slope, rel=1e-12)
    assert estimate.standard_error is None
    assert estimate.curvature != pytest.approx(plain.curvature, rel=1e-3), "the Hessian is not the GGN"


def test_curvlinops_own_ggn_is_ours():
    case = CASES["dlrm_bce"]
    theirs, _, _ = measured(case, curvature="GGNLinearOperator")
    ours, _, _ = measured(case)
    assert theirs.curvature == pytest.approx(ours.curvature, rel=1e-10)


def test_the_empirical_fisher_s_form_is_the_mean_squared_slope():
    """(1/R) Σ (d·g_i)², for a single logit the rows' slopes squared."""
    case = CASES["dlrm_bce"]
    estimate, model, change = measured(case, curvature="empirical_fisher")
    (dense, ids), targets = case.batch(1)
    squares = []
    for i in range(len(targets)):
        gradient = gradient_of(case, model, (dense[i : i + 1], ids[:, i : i + 1]), targets[i : i + 1])
        squares.append(sum((gradient[name] * change[name]).sum().item() for name in gradient) ** 2)
    assert estimate.curvature == pytest.approx(sum(squares) / len(squares), rel=1e-8)


def test_the_monte_carlo_fisher_is_near_the_ggn():
    case = CASES["mlp_cross_entropy"]
    estimate, _, _ = measured(case, rows=2000, curvature="fisher")
    exact, _, _ = measured(case, rows=2000)
    assert estimate.curvature == pytest.approx(exact.curvature, rel=0.15)


@pytest.mark.parametrize("operator", ["KFACLinearOperator", "EKFACLinearOperator", "GGNLinearOperator"])
def test_any_operator_of_curvlinops_goes_by_its_name(operator):
    """dᵀCd with the operator built by hand at θ0."""
    case = CASES["mlp_cross_entropy"]
    estimate, model, change = measured(case, curvature=operator)
    direction = [change[name] for name, _ in model.named_parameters()]
    matrix = getattr(curvlinops, operator)(
        model,
        case.torch_loss,
        list(model.parameters()),
        [(case.batch(1)[0][0], case.batch(1)[1])],
        check_deterministic=False,
    )
    form = sum((d * c).sum().item() for d, c in zip(direction, matrix @ direction, strict=True))
    assert estimate.curvature == pytest.approx(form, rel=1e-10)


def test_an_unknown_curvature_is_named():
    with pytest.raises(MeasurementError, match="'hesian' is unknown; choose ggn, hessian"):
        measured(CASES["mlp_cross_entropy"], curvature="hesian")


@pytest.mark.parametrize("name", ["dlrm_bce", "tied_embeddings", "convolution_batch_norm", "embedding_bags"])
def test_full_diagnostics(name):
    case = CASES[name]
    estimate, model, change = measured(case, diagnostics="full")
    found = estimate.diagnostics
    assert found is not None
    g1 = gradient_of(case, model, *case.batch(1))
    g2 = gradient_of(case, model, *case.batch(2))

    def dot(left: Change, right: Change) -> float:
        return sum((left[key] * right[key]).sum().item() for key in left)

    norms = [math.sqrt(dot(v, v)) for v in (g1, g2, change)]
    assert [found.gradient_norm_b1, found.gradient_norm_b2, found.direction_norm] == pytest.approx(norms, rel=1e-9)
    assert found.cosine_b1 == pytest.approx(dot(g1, change) / norms[0] / norms[2], rel=1e-9)
    assert found.cosine_b2 == pytest.approx(dot(g2, change) / norms[1] / norms[2], rel=1e-9)
    inputs, targets = case.batch(2)
    assert found.loss_b2 == pytest.approx(case.torch_loss(model(*inputs), targets).item(), rel=1e-9)
    inputs, targets = case.batch(1)
    assert estimate.loss == pytest.approx(case.torch_loss(model(*inputs), targets).item(), rel=1e-9)


@pytest.mark.parametrize("name", ["dlrm_bce", "attention"])
def test_a_fraction_probes_the_first_rows_and_widens_the_error_bar(name):
    case = CASES[name]
    part, _, _ = measured(case, rows=400, probe_fraction=0.25)
    whole, _, _ = measured(case, rows=400)
    inputs, targets = case.batch(1, 400)
    inputs, targets = first_rows(inputs, targets, 100)
    _, model, change = measured(case)
    slope, curvature = forms_by_reverse_mode(case, model, change, inputs, targets)
    assert (part.rows, whole.rows) == (100, 400)
    assert part.slope == pytest.approx(slope, rel=1e-10)
    assert part.curvature == pytest.approx(curvature, rel=1e-10)
    assert part.slope_variance is not None
    assert whole.slope_variance is not None
    assert part.slope_variance / whole.slope_variance == pytest.approx(4, rel=0.5)


class Packed(nn.Module):
    """A model of one argument: its ids and weights in a mapping, within a list."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(500, 4), nn.Linear(4, 3)

    def forward(self, packed: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        ids, weights = packed["columns"]
        return self.head(self.table(ids).mean(1) * weights[:, None])


def measured_packed(x: tuple[torch.Tensor, torch.Tensor], y: torch.Tensor, **options) -> StepSizeWorker:
    """A worker that has measured one step on the very rows that were trained on."""
    torch.manual_seed(0)
    model, loss = Packed(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, loss, **options)
    loss(model({"columns": list(x)}), y).backward()
    with worker.around_step(({"columns": list(x)},), y, step=0):
        optimizer.step()
    return worker


def test_a_fraction_cuts_tensors_in_nested_inputs_too():
    """A quarter of the rows four times over is, as rows to measure on, that quarter."""
    ids, weights, y = torch.randint(500, (10, 3)), torch.randn(10), torch.randint(3, (10,))
    x, y = (ids.repeat(4, 1), weights.repeat(4)), y.repeat(4)
    [part] = measured_packed(x, y, probe_fraction=0.25).poll()
    [whole] = measured_packed(x, y).poll()
    assert (part.rows, whole.rows) == (10, 40)
    assert part.relative == pytest.approx(whole.relative, rel=1e-4)


def test_a_lane_is_told_of_tensors_in_nested_inputs_too(monkeypatch):
    """Or the allocator could hand their memory out again while the side stream still reads it."""
    told: list[torch.Tensor] = []
    submit = Inline.submit

    def listening(self, work, uses):
        told.extend(uses)
        return submit(self, work, uses)

    monkeypatch.setattr(Inline, "submit", listening)
    x, y = (torch.randint(500, (40, 3)), torch.randn(40)), torch.randint(3, (40,))
    measured_packed(x, y)
    for tensor in (*x, y):
        assert any(tensor.data_ptr() == each.data_ptr() for each in told)


def test_rows_are_cut_by_the_caller_where_he_says_how():
    case = CASES["mlp_cross_entropy"]
    last, _, _ = measured(case, probe_fraction=0.5, take_rows=lambda inputs, y, rows: ((inputs[0][-rows:],), y[-rows:]))
    _, model, change = measured(case)
    (x,), y = case.batch(1)
    slope, _ = forms_by_reverse_mode(case, model, change, (x[12:],), y[12:])
    assert last.slope == pytest.approx(slope, rel=1e-10)


@pytest.mark.parametrize("name", ["dlrm_bce", "convolution_batch_norm", "embedding_bags", "several_tables"])
def test_the_secant_converges_to_the_jvp_as_the_step_shrinks(name):
    """First order: a tenth of the step, a tenth of the difference."""
    case = CASES[name]
    gaps = []
    for rate in (1e-4, 1e-5):

        def plain(model: nn.Module, rate: float = rate) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=rate)  # takes the sparse table's gradients too

        secant = measured(case, method="secant", make_optimizer=plain)[0].relative
        jvp = measured(case, make_optimizer=plain)[0].relative
        assert secant is not None
        assert jvp is not None
        gaps.append(abs(secant / jvp - 1))
    assert gaps[0] < 0.05
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.3, abs=1e-9)


def test_the_secant_takes_logits_the_caller_has_anyway():
    case = CASES["mlp_cross_entropy"]
    expected, _, _ = measured(case, method="secant")
    model = case.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    worker = StepSizeWorker(model, optimizer, case.loss, method="secant")
    inputs, targets = case.batch(2)
    case.torch_loss(model(*inputs), targets).backward()
    next_inputs, next_targets = case.batch(1)
    worker.before_step(next_inputs, next_targets, step=0)
    optimizer.step()
    worker.after_step(model(*next_inputs))
    assert worker.poll() == [expected]
    worker.before_step(next_inputs, next_targets, step=1)
    with pytest.raises(MeasurementError, match="of B1's rows"):
        worker.after_step(model(*next_inputs)[:3])


def test_a_secant_of_no_step_is_flat():
    case = CASES["mlp_cross_entropy"]
    estimate, _, _ = measured(case, method="secant", make_optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e-30))
    assert estimate.outcome is Outcome.FLAT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "taylor"}, "jvp or secant"),
        ({"method": "secant", "per_group": True}, "use 'jvp'"),
        ({"diagnostics": "some"}, "none or full"),
        ({"probe_fraction": 0.0}, "share of the probe batch"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(MeasurementError, match=message):
        measured(CASES["mlp_cross_entropy"], **options)


def by_name(name: str):
    def make(model: nn.Module) -> torch.optim.Optimizer:
        if name == "schedulefree":
            import schedulefree

            optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01)
            optimizer.train()
            return optimizer
        if name == "prodigy":
            import prodigyopt

            return prodigyopt.Prodigy(model.parameters())
        options = {"SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, "NAdam": {"weight_decay": 0.1}}
        return getattr(torch.optim, name)(model.parameters(), lr=0.01, **options.get(name, {}))

    return make


@pytest.mark.parametrize("name", ["SGD", "NAdam", "Adagrad", "RMSprop", "Adafactor", "schedulefree", "prodigy"])
def test_any_optimizer_s_step_is_a_direction(name):
    case = CASES["dlrm_bce"]
    estimate, model, change = measured(case, make_optimizer=by_name(name))
    slope, curvature = forms_by_reverse_mode(case, model, change, *case.batch(1))
    assert estimate.slope == pytest.approx(slope, rel=1e-10)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-10)


def test_schedule_free_steps_are_measured_at_y_along_the_change_of_y():
    """SGD written out: gradients at y = (1 − β)z + βx; z ← z − ηg, x ← x + (z − x)/t. Evaluation goes in between."""
    schedulefree = pytest.importorskip("schedulefree")
    draw, beta, rate = np.random.default_rng(0), 0.9, 0.3
    batches = [(draw.normal(size=(20, 3)), draw.normal(size=20)) for _ in range(9)]

    def gradient(index: int, at: np.ndarray) -> np.ndarray:
        inputs, targets = batches[index]
        return inputs.T @ (inputs @ at - targets) / len(targets)

    model = nn.Linear(3, 1, bias=False).double()
    z = x = y = model.weight.detach().numpy()[0].copy()
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), lr=rate, momentum=beta)
    worker = StepSizeWorker(model, optimizer, SquaredError(halved=True))
    for step in range(8):
        (x2, y2), (x1, y1) = (tuple(map(torch.from_numpy, batches[index])) for index in (step, step + 1))
        optimizer.eval()  # puts the weights at x
        optimizer.train()  # and back at y, which rounds
        optimizer.zero_grad()
        (0.5 * (model(x2)[:, 0] - y2).square()).mean().backward()
        with worker.around_step(x1, y1, step=step):
            optimizer.step()
        z = z - rate * gradient(step, y)
        x = x + (z - x) / (step + 1)
        before, y = y, (1 - beta) * z + beta * x
        d = y - before
        slope, curvature = d @ gradient(step + 1, before), np.square(batches[step + 1][0] @ d).mean()
        [estimate] = worker.poll()
        assert model.weight.detach().numpy()[0] == pytest.approx(y, rel=1e-10)
        assert estimate.slope == pytest.approx(slope, rel=1e-9)
        assert estimate.curvature == pytest.approx(curvature, rel=1e-9)
        assert estimate.absolute == pytest.approx(-slope / curvature * rate, rel=1e-9)
