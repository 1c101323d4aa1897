"""Between taking a step and asking for its estimate, nothing looks at a number: on a device each look waits for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stepsize import Outcome, StepSizeWorker
from stepsize.measuring import handoff
from stepsize.worker import StepSizeWorker as Worker
from tests.cases import CASES
from tests.lanes import DeferredLane
from tests.looks import LookedError, no_looks


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
