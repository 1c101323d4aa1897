"""Between taking a step and asking for its estimate, nothing looks at a number: on a device each look waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stepsize import Outcome, StepSizeWorker
from stepsize.measuring import handoff
from stepsize.worker import StepSizeWorker as Worker
from tests.cases import CASES
from tests.lanes import DeferredLane

LOOKS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::argwhere",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::_unique",
    "aten::_unique2",
    "aten::bincount",
    "aten::histc",
    "aten::repeat_interleave",
    "aten::_coalesce",
    "aten::coalesce",
    "aten::count_nonzero.item",
    "aten::allclose",
}
"""Operations that a CUDA device is waited for in: their result, or its size, is a number on the host."""
LOOKS_OF_PYTHON = {
    *(getattr(Tensor, name) for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__")),
    *(getattr(Tensor, name) for name in ("__index__", "__complex__", "__repr__", "__format__", "__contains__")),
    *(
        getattr(Tensor, name)
        for name in ("__array__", "equal", "allclose", "nonzero", "masked_select", "unique", "coalesce", "to_sparse")
    ),
    torch.equal,
    torch.allclose,
}
"""What reads a CPU's tensor past the dispatcher."""


class LookedError(AssertionError):
    """A number was looked at."""


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [index for index in args[1] if index is not None] if func is torch.ops.aten.index.Tensor else []
        if func.name().split(".")[0] in LOOKS or any(mask.dtype is torch.bool for mask in masks):
            raise LookedError(func.name())
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKS_OF_PYTHON:
            raise LookedError(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


@contextmanager
def no_looks() -> Iterator[None]:
    with _Functions(), _Operations():
        yield


def probe(worker: Worker, optimizer: torch.optim.Optimizer, lane: DeferredLane, batches: Any) -> None:
    """One measured step, the optimizer's own work left out."""
    (inputs, targets), (probed, labels) = batches
    with no_looks():
        worker.before_step(probed, labels, train_inputs=inputs, train_targets=targets, step=1)
    optimizer.step()
    with no_looks():
        worker.after_step()
        lane.tick()
        worker.before_step(probed, labels, train_inputs=inputs, train_targets=targets, step=2)
        worker.after_step()
        lane.tick()


def prepared(name: str, **options: Any) -> tuple[Worker, torch.optim.Optimizer, DeferredLane, Any]:
    """A worker whose first measurement, which learns about tables, lies behind it."""
    case = CASES[name]
    model = case.model()
    model.register_buffer("offset", torch.zeros(3))
    model.beside = torch.zeros(3)  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1) if options.pop("tensor_rate", 0) else 0.1)
    lane = DeferredLane(1)
    worker = StepSizeWorker(model, optimizer, case.loss, lane=lane, delay=4, self_check=False, **options)
    batches = case.batch(1), case.batch(2)
    case.torch_loss(model(*batches[0][0]), batches[0][1]).backward()
    (inputs, targets), (probed, labels) = batches
    worker.before_step(probed, labels, train_inputs=inputs, train_targets=targets, step=0)
    worker.after_step()
    assert len(worker.flush()) == 1
    return worker, optimizer, lane, batches


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tables": "dense", "tensor_rate": 1},
        {"estimators": ("unbiased", "hybrid"), "per_group": True, "diagnostics": "full"},
        {"method": "secant"},
        {"precision": "bfloat16"},
        {"probe_fraction": 0.5},
    ],
    ids=["jvp", "dense", "everything", "secant", "bfloat16", "fraction"],
)
def test_a_measured_step_looks_at_nothing(name, options, monkeypatch):
    if "probe_fraction" in options and name in {"dlrm_bce", "embedding_bags"}:
        options = {**options, "take_rows": lambda inputs, targets, rows: (inputs, targets)}
    monkeypatch.setattr(handoff, "host_sees", lambda tensor: False)
    worker, optimizer, lane, batches = prepared(name, **options)
    probe(worker, optimizer, lane, batches)
    found = worker.flush(step=5)
    assert [one.step for one in found] == [1, 2]
    assert found[0].outcome in (Outcome.OK, Outcome.ASCENT, Outcome.FLAT)
    assert found[0].slope is not None


@pytest.mark.parametrize("name", ["dlrm_bce", "embedding_bags"])
def test_where_the_host_sees_its_numbers_it_looks(name):
    """The test above would notice: on the CPU ids are compared, and parameters with what they were."""
    worker, optimizer, lane, batches = prepared(name)
    with pytest.raises(LookedError, match="equal"):
        probe(worker, optimizer, lane, batches)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: f"{x}",
        lambda x: x.to_sparse().coalesce(),
        lambda x: nn.functional.one_hot(x.long()),
    ],
)
def test_every_way_of_looking_is_noticed(look):
    with pytest.raises(LookedError), no_looks():
        look(torch.arange(3.0))
