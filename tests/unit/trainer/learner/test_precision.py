"""Training's precision: in force where it should be and nowhere else, and what it does to the numbers of a step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._python_dispatch import TorchDispatchMode

from ops.step_clock import StepClock
from pipeline.device import DevicePair, ModelInputs
from pipeline.rows import RowPosition
from stepsize import Horizon, MeasuringOptions, StepSizeWorker
from stepsize.losses import BCEWithLogits
from stepsize.worker.self_checks import SelfChecks
from trainer.learner import ModelConfig, OptimizerConfig, TrainingPrecision, build_model, build_optimizer
from trainer.step import TrainStep

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ROWS = 256


def click_model(seed: int = 0, *, dropout: float = 0.0) -> nn.Module:
    config = ModelConfig(table_rows=500, embedding_dim=16, bottom=(64, 16), top=(64, 64, 1), dropout=dropout)
    return build_model(config, dense_features=13, sparse_features=26, seed=seed)


def click_batch(seed: int) -> ModelInputs:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(ROWS, 13, generator=generator) * 4
    ids = torch.randint(500, (26, ROWS), generator=generator, dtype=torch.int32)
    return ModelInputs(dense, ids, (torch.rand(ROWS, generator=generator) < 0.3).float())


def train_step(model: nn.Module, name: Any, *, table: Any = "dense", lr: float = 1e-3) -> TrainStep:
    optimizer = build_optimizer(OptimizerConfig(name="nadamw", lr=lr, betas=(0.9, 0.99), eps=1e-8, table=table), model)
    precision = TrainingPrecision(name=name, device=CPU)
    worker = StepSizeWorker(model, optimizer, BCEWithLogits(), delay=0, forward_context=precision.forward)
    return TrainStep(
        model=model,
        optimizer=optimizer,
        worker=worker,
        horizon=Horizon(worker),
        average=None,
        clock=StepClock(),
        precision=precision,
    )


def pair(seed: int) -> DevicePair:
    b1, b2 = click_batch(1000 + seed), click_batch(seed)
    position = RowPosition(epoch=0, row=ROWS)
    return DevicePair(
        b1=b1,
        b2=b2,
        b1_rows=ROWS,
        b1_start=0,
        b2_rows=ROWS,
        b2_start=0,
        fresh=True,
        epoch=0,
        start=0,
        position=position,
        skipped=0,
    )


@pytest.fixture
def matmul() -> Iterator[Any]:
    """The setting of CUDA's float32 products, which needs no CUDA to be set."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    yield products
    products.fp32_precision = before


def test_tf32_is_in_force_within_and_what_was_before_is_put_back(matmul: Any) -> None:
    precision = TrainingPrecision(name="tf32", device=CUDA)
    for before in ("none", "ieee"):
        matmul.fp32_precision = before
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for context in (precision.forward, precision.backward):
                with context():
                    assert matmul.fp32_precision == "tf32"
                    with context():
                        assert matmul.fp32_precision == "tf32"
                    assert matmul.fp32_precision == "tf32"
                assert matmul.fp32_precision == before
                with pytest.raises(RuntimeError), context():
                    raise RuntimeError
                assert matmul.fp32_precision == before


@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16"])
def test_on_the_cpu_nothing_but_autocast_is_in_force(name: Any, matmul: Any) -> None:
    precision = TrainingPrecision(name=name, device=CPU)
    before = matmul.fp32_precision
    with precision.forward():
        assert torch.is_autocast_enabled("cpu") == (name == "bfloat16")
        assert matmul.fp32_precision == before
    with precision.backward():
        assert not torch.is_autocast_enabled("cpu")
        assert matmul.fp32_precision == before
    assert not torch.is_autocast_enabled("cpu")


def test_who_cannot_multiply_tf32_trains_in_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    capability = (7, 5)
    for device in (CPU, CUDA):
        notice = TrainingPrecision(name="tf32", device=device).without_effect()
        assert notice is not None
        assert "float32" in notice
        assert "\n" not in notice
    capability = (8, 0)
    assert TrainingPrecision(name="tf32", device=CUDA).without_effect() is None
    assert TrainingPrecision(name="bfloat16", device=CPU).without_effect() is None
    assert TrainingPrecision().without_effect() is None


def test_a_gpu_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    with pytest.raises(ValueError, match=r'model.precision is "bfloat16", which an old one cannot'):
        TrainingPrecision(name="bfloat16", device=CUDA).refuse_unsupported()
    TrainingPrecision(name="bfloat16", device=CPU).refuse_unsupported()
    TrainingPrecision(name="tf32", device=CUDA).refuse_unsupported()


class Products(TorchDispatchMode):
    """Notes the types of all matrix products and of all losses."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[torch.dtype] = set()
        self.losses: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if name in ("mm", "addmm", "bmm"):
            self.products |= {arg.dtype for arg in args if isinstance(arg, Tensor)}
        if name.startswith("binary_cross_entropy"):
            self.losses |= {arg.dtype for arg in args if isinstance(arg, Tensor)}
        return func(*args, **(kwargs or {}))


def test_products_are_bfloat16_forward_and_backward_and_all_that_lasts_is_float32() -> None:
    step = train_step(click_model(), "bfloat16")
    with Products() as seen:
        loss = step(pair(0), step=0, learning_rate=1e-3, measure=False).loss
    assert seen.products == {torch.bfloat16}
    assert seen.losses == {torch.float32}
    assert loss.dtype is torch.float32
    for parameter in step.model.parameters():
        assert parameter.dtype is torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype is torch.float32
        for value in step.optimizer.state[parameter].values():
            assert not isinstance(value, Tensor) or value.dtype is torch.float32


def test_float32_is_bit_for_bit_what_it_was() -> None:
    model = click_model(dropout=0.5)
    plain = copy.deepcopy(model)
    step = train_step(model, "float32")
    optimizer = train_step(plain, "float32").optimizer
    for number in range(3):
        batch = pair(number)
        torch.manual_seed(number)
        step(batch, step=number, learning_rate=1e-3, measure=False)
        torch.manual_seed(number)
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(plain(batch.b2.dense, batch.b2.ids), batch.b2.label).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_tables_kept_by_rows_take_the_same_steps(dropout: float) -> None:
    weights = []
    for table in ("dense", "lazy"):
        step = train_step(click_model(dropout=dropout), "bfloat16", table=table)
        torch.manual_seed(0)
        for number in range(12):
            step(pair(number), step=number, learning_rate=1e-3, measure=number % 3 == 0)
        weights.append([value.detach().clone() for value in step.model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_measuring_leaves_bfloat16_training_bit_for_bit_as_it_is(dropout: float) -> None:
    weights = []
    for measure in (False, True):
        step = train_step(click_model(dropout=dropout), "bfloat16")
        torch.manual_seed(0)
        for number in range(5):
            step(pair(number), step=number, learning_rate=1e-3, measure=measure)
        weights.append([value.detach().clone() for value in step.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_self_check_finds_no_fault_with_bfloat16_over_many_seeds() -> None:
    for seed in range(32):
        step = train_step(click_model(seed, dropout=0.5 if seed % 2 else 0.0), "bfloat16", lr=10.0 ** (seed % 4 - 5))
        step(pair(seed), step=0, learning_rate=10.0 ** (seed % 4 - 5), measure=True)
        [estimate] = step.worker.poll(step=0)
        assert estimate.slope is not None


def test_measuring_runs_in_the_precision_of_training_unless_it_is_lower() -> None:
    found = {}
    for trained, measured in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")):
        model = click_model()
        precision = TrainingPrecision(name=trained, device=CPU)  # pyright: ignore[reportArgumentType]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = MeasuringOptions(precision=measured)  # pyright: ignore[reportArgumentType]
        worker = StepSizeWorker(model, optimizer, BCEWithLogits(), options, forward_context=precision.forward)
        batch = pair(0)
        binary_cross_entropy_with_logits(model(batch.b2.dense, batch.b2.ids), batch.b2.label).backward()
        worker._checks = SelfChecks(due=False)  # whose passes would count too
        with worker.around_step((batch.b1.dense, batch.b1.ids), batch.b1.label, step=0):
            optimizer.step()
        [found[trained, measured]] = [(estimate.slope, estimate.curvature) for estimate in worker.poll(step=0)]
    assert found["float32", "bfloat16"] == found["bfloat16", "float32"]
    assert found["float32", "bfloat16"] != found["float32", "float32"]


def test_a_step_multiplies_tf32_forward_and_backward_and_neither_in_its_loss_nor_in_the_optimizer(matmul: Any) -> None:
    model, seen = click_model(), {}
    step = train_step(model, "float32")
    step = replace(step, precision=TrainingPrecision(name="tf32", device=CUDA))
    model.register_forward_hook(lambda *_: seen.update(forward=matmul.fp32_precision))
    model.top[0].weight.register_hook(lambda gradient: seen.update(backward=matmul.fp32_precision))  # pyright: ignore
    step.optimizer.register_step_pre_hook(lambda *_: seen.update(optimizer=matmul.fp32_precision))
    before = matmul.fp32_precision
    step(pair(0), step=0, learning_rate=1e-3, measure=False)
    assert seen == {"forward": "tf32", "backward": "tf32", "optimizer": before}
    assert matmul.fp32_precision == before != "tf32"


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "rounding"), [("tf32", 2.0**-10), ("bfloat16", 2.0**-8)])
def test_on_cuda_gradients_are_those_of_float32_but_for_the_rounding(name: Any, rounding: float) -> None:
    """TF32 has ten bits of fraction, and factors are cut off after them, not rounded (on an H200: 12 roundings)."""
    batch, gradients = click_batch(0), []
    for precision in ("float32", name):
        model = click_model().cuda()
        step = replace(train_step(model, "float32"), precision=TrainingPrecision(name=precision, device=CUDA))
        inputs = ModelInputs(*(part.cuda() for part in batch))
        step(replace(pair(0), b2=inputs), step=0, learning_rate=0.0, measure=False)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))  # pyright: ignore
    difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 0 < difference < 16 * rounding
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tf32", "bfloat16"])
def test_on_cuda_the_self_check_finds_no_fault_and_estimates_are_near_those_of_float32(name: Any) -> None:
    for seed in range(20):
        found = []
        for precision in (TrainingPrecision(), TrainingPrecision(name=name, device=CUDA)):
            model = click_model(seed).cuda()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            worker = StepSizeWorker(model, optimizer, BCEWithLogits(), delay=0, forward_context=precision.forward)
            b1, b2 = (ModelInputs(*(part.cuda() for part in click_batch(seed + other))) for other in (1000, 0))
            binary_cross_entropy_with_logits(model(b2.dense, b2.ids), b2.label).backward()
            with worker.around_step((b1.dense, b1.ids), b1.label, step=0):
                optimizer.step()
            found += worker.poll(step=0)
        exact, coarse = found
        assert coarse.curvature == pytest.approx(exact.curvature, rel=16 * 2.0**-8)
        assert abs(coarse.relative - exact.relative) < 0.25 * exact.standard_error
