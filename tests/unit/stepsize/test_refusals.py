"""What cannot be measured is said where it can be known, with a way out; and neighbours of it that can be."""

from __future__ import annotations

import sys
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stepsize import AutogradLoss, CrossEntropy, MeasurementError, MeasuringOptions, StepSizeWorker
from tests.reverse_mode import measured_and_expected

CE = nn.CrossEntropyLoss()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (functional.cross_entropy, r"cross_entropy has no closed form.*nn\.CrossEntropyLoss\(\).*AutogradLoss"),
        (functional.mse_loss, r"AutogradLoss\(function\)"),
        (nn.CrossEntropyLoss, r"nn\.CrossEntropyLoss\(\)"),
        (nn.HuberLoss(), r"HuberLoss has no closed form"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), r"with label_smoothing=0\.1 has"),
        (nn.MSELoss(reduction="sum"), "MSELoss with reduction='sum' has"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), r"pos_weight=.*stepsize\.BCEWithLogits\(positive_weight"),
        (nn.CrossEntropyLoss(weight=torch.rand(30)), r"CrossEntropyLoss with weight=a tensor of shape \(30,\) has"),
        (None, "NoneType has no closed form"),
    ],
)
def test_losses(loss, message):
    model = mlp()
    with pytest.raises(MeasurementError, match=message) as refused:
        StepSizeWorker(model, sgd(model), loss)
    assert "\n" not in str(refused.value)


def test_a_module_that_is_a_loss_of_ours_is_taken():
    class Own(nn.Module):
        per_sample, slope = CrossEntropy().per_sample, CrossEntropy().slope
        curvature, curvature_error = CrossEntropy().curvature, CrossEntropy().curvature_error

    model = mlp()
    StepSizeWorker(model, sgd(model), Own())


def without_rate(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = sgd(model)
    optimizer.param_groups[0]["lr"] = None
    return optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_rate, r"parameter group 0 of SGD has lr = None.*relative_step=False"),
        (lambda model: list(model.parameters()), "Parameter has no param_groups"),
        (lambda model: model, "Sequential has no param_groups"),
        (lambda model: None, "NoneType has no param_groups"),
    ],
)
def test_optimizers(make, message):
    model = mlp()
    with pytest.raises(MeasurementError, match=message):
        StepSizeWorker(model, make(model), CE)


class DTensor(nn.Parameter):
    """Called as torch's own, which needs processes to be made."""


def sharded() -> nn.Module:
    model = mlp()
    model[0].weight = DTensor(torch.zeros(8, 6))  # pyright: ignore[reportIndexIssue]
    return model


def by_deepspeed() -> nn.Module:
    model = mlp()
    model[0].weight.ds_id = 3  # pyright: ignore
    return model


class FullyShardedDataParallel(nn.Sequential):
    """Called as torch's own, which needs processes to be made."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sharded, r"'0\.weight' is sharded \(DTensor\).*DistributedDataParallel"),
        (by_deepspeed, "split by DeepSpeed"),
        (lambda: mlp().to("meta"), "meta device"),
        (lambda: FullyShardedDataParallel(nn.Linear(6, 4)), r"sharded \(FullyShardedDataParallel\)"),
    ],
)
def test_sharded_parameters(make, message):
    model = make()
    with pytest.raises(MeasurementError, match=message):
        StepSizeWorker(model, sgd(model), CE)


def test_missing_curvlinops_is_said_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    model = mlp()
    with pytest.raises(MeasurementError, match=r"needs curvlinops; install it.*curvature=\"ggn\""):
        StepSizeWorker(model, sgd(model), CE, curvature="hessian")


def test_an_option_that_is_none_is_named():
    model = mlp()
    with pytest.raises(MeasurementError, match="diagnostic: there is no such option; perhaps diagnostics"):
        StepSizeWorker(model, sgd(model), CE, diagnostic="full")
    with pytest.raises(MeasurementError, match=r"measuring: .* is no MeasuringOptions"):
        StepSizeWorker(model, sgd(model), CE, {"per_group": True})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("share", ["0.1", True, None])
def test_a_share_that_is_no_number_is_refused(share):
    with pytest.raises(MeasurementError, match="is not a share of the probe batch"):
        MeasuringOptions(probe_fraction=share)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (functional.relu, r"is not an nn\.Module"),
        (nn.Linear, r"is not an nn\.Module"),
        (sgd(mlp()), r"SGD is not an nn\.Module"),
        (nn.ReLU(), "ReLU has no parameters"),
        (mlp(), "moves none of the model's parameters"),
    ],
)
def test_what_is_no_model_of_the_optimizer_is_refused(model, message):
    with pytest.raises(MeasurementError, match=message) as refused:
        StepSizeWorker(model, sgd(mlp()), CE)
    assert "\n" not in str(refused.value)


def test_a_batch_without_rows_is_refused():
    model = mlp()
    worker = StepSizeWorker(model, sgd(model), CE)
    with pytest.raises(MeasurementError, match="B1 has no rows"):
        worker.before_step(torch.randn(0, 6), torch.zeros(0, dtype=torch.long), step=0)


@pytest.mark.parametrize("training", [True, False])
def test_a_wrapped_schedule_free_optimizer(training):
    schedulefree = pytest.importorskip("schedulefree")
    model = mlp()
    optimizer = schedulefree.ScheduleFreeWrapper(sgd(model), momentum=0.9)
    worker = StepSizeWorker(model, optimizer, CE)
    x, y = torch.randn(2, 24, 6), torch.randint(4, (2, 24))
    if not training:
        with pytest.raises(MeasurementError, match=r"evaluation mode.*optimizer\.train\(\)"):
            worker.before_step(x[1], y[1], step=0)
        return
    optimizer.train()
    CE(model(x[0]), y[0]).backward()
    before = [p.detach().clone() for p in model.parameters()]
    gradients = torch.autograd.grad(CE(model(x[1]), y[1]), list(model.parameters()))
    with worker.around_step(x[1], y[1], step=0):
        optimizer.step()
    slope = sum(((p - b) * g).sum().item() for p, b, g in zip(model.parameters(), before, gradients, strict=True))
    assert worker.poll()[0].slope == pytest.approx(slope, rel=1e-4)


def test_data_parallel_is_measured_as_the_model_it_holds():
    x, y = torch.randn(2, 24, 6), torch.randint(4, (2, 24))
    slopes = []
    for wrap in (lambda model: model, nn.DataParallel):
        model = wrap(mlp())
        optimizer = sgd(model)
        worker = StepSizeWorker(model, optimizer, CE)
        CE(model(x[0]), y[0]).backward()
        with worker.around_step(x[1], y[1], step=0):
            optimizer.step()
        slopes.append(worker.poll()[0].slope)
    assert slopes[0] == slopes[1]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_layers(kind, layers):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = kind(6, 8, layers, batch_first=True), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(x)[0][:, -1])

    torch.manual_seed(0)
    model, enabled = Recurrent(), torch.backends.mkldnn.enabled
    batches = [((torch.randn(24, 3, 6),), torch.randint(4, (24,))) for _ in range(2)]
    estimate, slope, curvature = measured_and_expected(model, CE, batches[0], batches[1])
    assert estimate.slope == pytest.approx(slope, rel=1e-3)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-3)
    assert torch.backends.mkldnn.enabled == enabled


class BatchEncoding(UserDict):
    """What a tokenizer returns is such a mapping, which torch's trees do not look into."""


class Tokens(nn.Module):
    """Reads a mapping of ids and mask, (R, 5) each, to logits (R, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(40, 8), nn.Linear(8, 4)

    def forward(self, batch: Any) -> Tensor:
        mask = batch["mask"][..., None]
        return self.head((self.table(batch["ids"]) * mask).sum(1) / mask.sum(1))


def test_a_fraction_of_a_tokenizer_s_mapping():
    torch.manual_seed(0)
    ids, mask, y = torch.randint(40, (32, 5)), torch.ones(32, 5), torch.randint(4, (32,))
    slopes, quarter = [], MeasuringOptions(probe_fraction=0.25)
    for batch, measuring in (
        (BatchEncoding(ids=ids, mask=mask), quarter),
        (BatchEncoding(ids=ids[:8], mask=mask[:8]), MeasuringOptions()),
    ):
        torch.manual_seed(1)
        model = Tokens()
        optimizer = sgd(model)
        CE(model(BatchEncoding(ids=ids[16:], mask=mask[16:])), y[16:]).backward()
        worker = StepSizeWorker(model, optimizer, CE, measuring)
        with worker.around_step((batch,), y[: len(batch["ids"])], step=0):
            optimizer.step()
        [estimate] = worker.poll()
        slopes.append(estimate.slope)
        assert (estimate.rows, len(ids)) == (8, 32)
    assert slopes[0] == slopes[1]


def test_inputs_that_no_row_can_be_cut_from():
    class Opaque:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, given: Opaque) -> Tensor:
            return self.inner(given.x)

    model = Reader()
    worker = StepSizeWorker(model, sgd(model), CE, probe_fraction=0.5)
    with pytest.raises(MeasurementError, match=r"\(Opaque\) has the targets' 24 rows.*take_rows"):
        worker.before_step((Opaque(torch.randn(24, 6)),), torch.randint(4, (24,)), step=0)


class PerToken(nn.Module):
    """x (R, T, 6) → logits (R, C, T), as torch's cross-entropy takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).transpose(1, 2)


def tokens(kind: str) -> tuple[tuple[Tensor], Tensor]:
    x = torch.randn(16, 5, 6).double()
    if kind == "probabilities":
        return (x,), torch.randn(16, 4, 5).double().softmax(1)
    y = torch.randint(4, (16, 5))
    if kind == "ignored":
        y[torch.rand(16, 5) < 0.4] = -100
    return (x,), y


@pytest.mark.parametrize("kind", ["indices", "ignored", "probabilities"])
def test_a_loss_of_every_token_is_torch_s(kind):
    torch.manual_seed(0)
    estimate, slope, curvature = measured_and_expected(PerToken().double(), CE, tokens(kind), tokens(kind))
    assert estimate.rows == 16
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)


def test_a_token_wise_loss_of_one_s_own():
    torch.manual_seed(0)
    own = AutogradLoss(lambda z, y: functional.cross_entropy(z, y, reduction="none"))
    estimate, slope, curvature = measured_and_expected(
        PerToken().double(), CE, tokens("indices"), tokens("indices"), loss=own
    )
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)


def test_classes_last_are_told_how():
    model = mlp()
    worker = StepSizeWorker(model, sgd(model), CE)
    x, y = torch.randn(16, 5, 6), torch.randint(4, (16, 5))
    CE(model(x).transpose(1, 2), y).backward()
    with pytest.raises(MeasurementError, match=r"logits\.transpose\(1, 2\)"):
        worker.before_step(x, y, step=0)


def test_a_mean_loss_is_told_how():
    model = mlp()
    worker = StepSizeWorker(model, sgd(model), AutogradLoss(functional.cross_entropy))
    with pytest.raises(MeasurementError, match=r"returned \(\) for 24 rows; return one loss a row.*reduction="):
        worker.before_step(torch.randn(24, 6), torch.randint(4, (24,)), step=0)
