"""What goes wrong silently around forward mode, each case measured right or refused loudly."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from stepsize import Estimate, MeasurementError, Outcome, StepSizeWorker
from tests.cases import CASES, SmallDLRM, parameters_of

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


def without_tangents(graph: torch.fx.GraphModule, _: list[torch.Tensor]):
    """A compiler backend whose kernels, like inductor's, fill fresh memory and so lose tangents without a word."""

    def compiled(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = graph(*args)
        return outputs if torch.is_grad_enabled() else tuple(forward_ad.unpack_dual(o).primal.clone() for o in outputs)

    return compiled


class FunctionCompiledInside(nn.Module):
    """A model whose forward calls a compiled function, which no look at its modules reveals."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.squash = torch.compile(lambda z: 3 * torch.tanh(z), backend=without_tangents)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.squash(self.inner(x))


def test_compiled_models_are_measured_as_their_eager_selves():
    x, y = rows_of(6)
    expected = one_estimate(mlp(), x, y)
    whole = mlp()
    assert_same(one_estimate(whole, x, y, run=torch.compile(whole, backend=without_tangents)), expected)


def test_compiled_parts_are_measured_as_their_eager_selves():
    x, y = rows_of(6)
    expected = one_estimate(mlp(), x, y)
    part = mlp()
    part[0] = torch.compile(part[0], backend=without_tangents)  # pyright: ignore[reportArgumentType]
    assert_same(one_estimate(part, x, y), expected)
    in_place = mlp()
    in_place[2].compile(backend=without_tangents)
    assert_same(one_estimate(in_place, x, y), expected)


def test_functions_compiled_inside_a_model_keep_the_tangent():
    x, y = rows_of(6)

    class Eager(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * torch.tanh(self.inner(x))

    expected = one_estimate(Eager(mlp()), x, y)
    assert_same(one_estimate(FunctionCompiledInside(mlp()), x, y), expected)


class Checkpointed(nn.Module):
    """Recomputes its hidden layer in the backward pass, in either of torch's two ways."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.inner, self.use_reentrant = mlp(), use_reentrant

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[1](self.inner[0](x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[3](self.inner[2](checkpoint(self.hidden, x, use_reentrant=self.use_reentrant)))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("diagnostics", ["none", "full"])
def test_checkpointed_parts_keep_the_tangent(use_reentrant, diagnostics):
    """A reentrant checkpoint reads its parameters inside an autograd function: without care, d's part in them is 0."""
    x, y = rows_of(6)
    x.requires_grad_()  # or a reentrant checkpoint gives its parameters no gradients at all
    expected = one_estimate(mlp(), x, y)
    applied = CheckpointFunction.apply
    found = one_estimate(Checkpointed(use_reentrant=use_reentrant), x, y, diagnostics=diagnostics)
    assert_same(found, expected)
    assert CheckpointFunction.apply == applied
    if found.diagnostics is not None:
        cosine, norms = (
            found.diagnostics.cosine_b1,
            (
                found.diagnostics.gradient_norm_b1,
                found.diagnostics.direction_norm,
            ),
        )
        assert cosine * norms[0] * norms[1] == pytest.approx(expected.slope, rel=1e-4)  # pyright: ignore


def test_scripted_models_and_parts_are_refused_at_once():
    whole, part = torch.jit.script(mlp()), nn.Sequential(torch.jit.script(mlp()), nn.Flatten(0))
    for model, name in ((whole, "the model"), (part, "module '0'")):
        with pytest.raises(MeasurementError, match=f"^{name} is scripted"):
            StepSizeWorker(model, torch.optim.SGD(model.parameters()), LOSS)


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


class Bag(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(100, 6, **options)
        self.head = nn.Linear(6, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag(ids)).squeeze(1)


@pytest.mark.parametrize(("options", "message"), [({"mode": "max"}, '"max"'), ({"max_norm": 1.0}, "max_norm")])
@pytest.mark.parametrize("tables", ["rows", "dense"])
def test_what_a_bag_cannot_be_measured_with_is_refused(options, message, tables):
    ids = torch.randint(100, (2, 4, 3))
    with pytest.raises(MeasurementError, match=message):
        one_estimate(Bag(**options), ids, torch.ones(2, 4), tables=tables)


def test_learned_weights_of_a_bag_carry_their_own_tangent():
    class Weighted(nn.Module):
        def __init__(self, *, bag: bool) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 6)
            self.scores = nn.Embedding(100, 1)
            self.bag = bag

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            weights = self.scores(ids).squeeze(-1)
            if self.bag:
                pooled = functional.embedding_bag(ids, self.table.weight, mode="sum", per_sample_weights=weights)
            else:
                pooled = (self.table(ids) * weights[..., None]).sum(1)
            return pooled.sum(1)

    ids, y = torch.randint(100, (2, 20, 3)), torch.randint(2, (2, 20)).float()
    plain, bagged = Weighted(bag=False), Weighted(bag=True)
    bagged.load_state_dict(plain.state_dict())
    assert_same(one_estimate(bagged, ids, y), one_estimate(plain, ids, y))


def test_look_ups_that_change_from_pass_to_pass_are_refused_by_rows_and_fine_densely():
    calls = itertools.count()

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(500, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table((ids + next(calls)) % 500).sum((1, 2))

    ids, y = torch.randint(500, (2, 8, 3)), torch.ones(2, 8)
    with pytest.raises(MeasurementError, match='tables="dense"'):
        one_estimate(Growing(), ids, y)
    assert one_estimate(Growing(), ids, y, tables="dense", self_check=False).slope is not None


def test_a_table_read_as_a_whole_only_later_is_refused():
    class Regularized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(500, 4)
            self.late = False

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            looked_up = self.table(ids).sum((1, 2))
            return looked_up + self.table.weight.square().sum() if self.late else looked_up

    model = Regularized()
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters(), lr=0.1), LOSS)
    ids, y = torch.randint(500, (8, 3)), torch.ones(8)
    with worker.around_step(ids, y, step=0):
        pass
    model.late = True
    with (
        pytest.raises(MeasurementError, match=r"'table\.weight' is read as a whole"),
        worker.around_step(ids, y, step=1),
    ):
        pass


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


def test_fused_attention_is_put_aside_for_the_pass_only():
    """An encoder layer in eval mode takes a fused path, and its attention a fused kernel; neither has a tangent."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0),
        nn.Flatten(),
        nn.Linear(18, 1),
        nn.Flatten(0),
    ).eval()
    x, y = torch.randn(2, 16, 3, 6), torch.randint(2, (2, 16)).float()
    assert torch.backends.mha.get_fastpath_enabled()
    assert one_estimate(model, x, y).outcome in (Outcome.OK, Outcome.ASCENT)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, *gradients):
        return 2 * gradients[0]


class WithOwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Doubled.apply(self.inner(x))  # pyright: ignore[reportReturnType]


def test_a_function_without_forward_mode_is_refused_with_a_way_out():
    x, y = rows_of(6)
    with pytest.raises(MeasurementError, match='method="secant"'):
        one_estimate(WithOwnFunction(), x, y)
    assert one_estimate(WithOwnFunction(), x, y, method="secant").outcome is Outcome.OK


class ForeignCheckpoint(torch.autograd.Function):
    """What other libraries' checkpoints do: run a function that reads parameters which torch does not see passed."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.x = function, x
        return function(x)

    @staticmethod
    def backward(ctx, *gradients):
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        torch.autograd.backward(y, *gradients)
        return None, x.grad


class OwnSquare(torch.autograd.Function):
    """A function that knows forward mode, whatever it reads."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x.square()

    @staticmethod
    def backward(ctx, *gradients):
        return 2 * ctx.saved_tensors[0] * gradients[0]

    @staticmethod
    def jvp(ctx, *tangents):
        return 2 * ctx.saved_tensors[0] * tangents[0]


class Around(nn.Module):
    """`function` of the hidden layer, in the middle of a model whose other parts keep their tangents."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner, self.function = mlp(), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[3](self.inner[2](self.function(self.inner[0], x)))


def by_a_foreign_checkpoint(layer: nn.Module, x: torch.Tensor) -> Any:
    return ForeignCheckpoint.apply(layer, x)


def test_a_function_that_reads_parameters_by_itself_is_refused():
    """The layer behind it still has a tangent, so that the logits do; without care α* is that of half the step."""
    model = Around(by_a_foreign_checkpoint)
    x, y = rows_of(6)
    x.requires_grad_()
    applied = vars(torch.autograd.Function)["apply"]
    with pytest.raises(MeasurementError, match="ForeignCheckpoint, which has no jvp"):
        one_estimate(model, x, y)
    assert vars(torch.autograd.Function)["apply"] is applied
    assert one_estimate(model, x, y, method="secant").slope is not None


@pytest.mark.parametrize("tables", ["rows", "dense"])
def test_a_function_that_looks_rows_up_by_itself_is_refused(tables):
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.scale = nn.Embedding(500, 6), nn.Linear(6, 1)

        def forward(self, x: torch.Tensor) -> Any:
            ids = x[:, 0].abs().long()
            return self.scale(ForeignCheckpoint.apply(lambda x: self.table(ids) + x, x)).squeeze(1)

    x, y = rows_of(6)
    x.requires_grad_()
    with pytest.raises(MeasurementError, match="ForeignCheckpoint, which has no jvp"):
        one_estimate(Looked(), x, y, tables=tables)


def test_functions_that_know_forward_mode_or_read_nothing_that_moves_are_let_be():
    x, y = rows_of(6)
    x.requires_grad_()
    squared = one_estimate(Around(lambda layer, x: layer(x).square()), x, y)
    assert_same(one_estimate(Around(lambda layer, x: OwnSquare.apply(layer(x))), x, y), squared)
    doubled = one_estimate(Around(lambda layer, x: layer(2 * x)), x, y)
    assert_same(one_estimate(Around(lambda layer, x: layer(Doubled.apply(x))), x, y), doubled)


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


def test_a_table_fed_by_another_optimizer_is_seen_by_both():
    """Sparse gradients into SparseAdam, everything else into AdamW: one direction over both."""
    case = CASES["dlrm_bce"]
    model = SmallDLRM().double()
    model.table.sparse = True
    rest = [p for name, p in model.named_parameters() if name != "table.weight"]
    optimizers = [torch.optim.SparseAdam([model.table.weight], lr=0.01), torch.optim.AdamW(rest, lr=0.01)]
    before = parameters_of(model)
    worker = StepSizeWorker(model, optimizers, case.loss, diagnostics="full")
    inputs, targets = case.batch(2)
    case.torch_loss(model(*inputs), targets).backward()
    with worker.around_step(*case.batch(1), train_inputs=inputs, train_targets=targets, step=0):
        for optimizer in optimizers:
            optimizer.step()
    [estimate] = worker.poll()
    assert estimate.diagnostics is not None
    moved = sum((value - before[name]).square().sum().item() for name, value in parameters_of(model).items())
    assert estimate.diagnostics.direction_norm == pytest.approx(moved**0.5, rel=1e-10)
    assert estimate.diagnostics.gradient_norm_b2 is not None
