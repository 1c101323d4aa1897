"""Evaluation on a device that runs late: the host waits for no batch under way, and every number is the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.device import ModelInputs
from tests import fake_cuda
from tests.fake_cuda import DEVICE, FakeCuda
from trainer.learner.scoring import Evaluation, evaluate
from trainer.learner.scoring.evaluation import IN_FLIGHT_BATCHES, Evaluator
from trainer.learner.scoring.host_copy import HostCopy

SEEDS = range(8)


class Scale(nn.Module):
    """Logits that are the dense feature, times a weight."""

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return (dense * 1.7).sum(1)


def on_host(*, nan: bool = False) -> list[ModelInputs]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for rows in (64, 64, 64, 64, 64, 64, 17):
        dense = torch.randn(rows, 3, generator=generator)
        ids = torch.zeros(2, rows, dtype=torch.int32)
        batches.append(ModelInputs(dense, ids, (torch.rand(rows, generator=generator) < 0.3).float()))
    if nan:
        batches[3].dense[5, 1] = math.nan
    return batches


def on_device(batches: list[ModelInputs]) -> Iterator[ModelInputs]:
    for batch in batches:
        yield ModelInputs(*(part.to(DEVICE, non_blocking=True) for part in batch))


def evaluated_late(seed: int, batches: list[ModelInputs]) -> Evaluation:
    with FakeCuda(seed).installed():
        return evaluate(Scale(), on_device(batches), split="test")


@pytest.mark.parametrize("nan", [False, True])
def test_the_numbers_are_those_of_the_cpu_bit_for_bit(nan):
    batches = on_host(nan=nan)
    expected = evaluate(Scale(), batches, split="test")
    assert math.isnan(expected.loss) == nan
    for seed in SEEDS:
        assert repr(evaluated_late(seed, batches)) == repr(expected), f"seed {seed}"  # where nan is nan


def test_without_waiting_for_the_copies_the_numbers_are_others(monkeypatch):
    batches = on_host()
    expected = evaluate(Scale(), batches, split="test")
    monkeypatch.setattr(fake_cuda.Event, "synchronize", lambda event: None)
    assert any(evaluated_late(seed, batches) != expected for seed in SEEDS)


class Watched(FakeCuda):
    """Notes what the host waits for: an event, or all of a stream."""

    def __init__(self) -> None:
        super().__init__(0)
        self.waits: list[str] = []

    def run(self, *, until: Any = None) -> None:
        self.waits.append("event" if until is not None and "Event" in until.__qualname__ else "stream")
        super().run(until=until)


def test_the_host_waits_for_nothing_but_the_batch_before_the_last_two():
    cuda = Watched()
    with cuda.installed():
        evaluator, seen = Evaluator(), []
        for batch in on_device(on_host()):
            before = len(cuda.waits)
            evaluator.add(Scale()(batch.dense, batch.ids), batch.label)
            seen.append(cuda.waits[before:])
        assert seen == [[]] * IN_FLIGHT_BATCHES + [["event"]] * (len(seen) - IN_FLIGHT_BATCHES)
        before = len(cuda.waits)
        evaluator.result("test")
        at_the_end = cuda.waits[before:]
    assert at_the_end == ["event"] * IN_FLIGHT_BATCHES + ["stream"], "once, for the sum of all losses"


def test_tensors_of_the_host_are_not_copied():
    one, other = torch.rand(3), torch.rand(2)
    found = HostCopy(one, other).wait()
    assert found[0] is one
    assert found[1] is other


@pytest.mark.gpu
def test_on_cuda_no_batch_is_waited_for_and_the_numbers_are_right():
    """`set_sync_debug_mode` refuses whatever synchronizes but waiting for an event."""
    batches = on_host()
    device = [ModelInputs(*(part.cuda() for part in batch)) for batch in batches]
    model, evaluator = Scale(), Evaluator()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in device:
            evaluator.add(model(batch.dense, batch.ids), batch.label)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found, expected = evaluator.result("test"), evaluate(model, batches, split="test")
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.auc == pytest.approx(expected.auc, abs=1e-3)
    assert (found.rows, found.auc_error) == (expected.rows, expected.auc_error)
