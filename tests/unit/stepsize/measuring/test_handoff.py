"""The lanes: inline on the CPU; on CUDA never waited for, never ahead of the step, never behind the next one."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from stepsize import Estimate, Outcome, StepSizeWorker
from stepsize.measuring.handoff import Inline, SideStream, lane_for
from tests.cases import CASES
from tests.lanes import LaggingLane

ON_DEVICE = ["dlrm_bce", "mlp_cross_entropy", "convolution_batch_norm", "attention", "several_tables"]
SLEEP_CYCLES = 200_000_000
"""About a tenth of a second of a GPU: far longer than a pass over these models."""


def test_the_cpu_has_its_numbers_at_once():
    lane = lane_for(torch.device("cpu"))
    assert isinstance(lane, Inline)
    values = {"a": torch.tensor([1.0, 2.0]).double(), "b": torch.tensor([3.0]).double()}
    pending = lane.submit(lambda: values, uses=[])
    assert pending.done()
    assert pending.read() == {"a": [1.0, 2.0], "b": [3.0]}


def on(device: str, value: tuple[tuple[torch.Tensor, ...], torch.Tensor]):
    return tuple(tensor.to(device) for tensor in value[0]), value[1].to(device)


def prepared(name: str, device: str, **options) -> tuple[StepSizeWorker, nn.Module, torch.optim.Optimizer]:
    """A worker on `device` with B2's gradient in place, its first (learning) estimate behind it."""
    case = CASES[name]
    model = case.model().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, case.loss, self_check=False, **options)
    with worker.around_step(*on(device, case.batch(5)), step=0):
        pass
    worker.drain()
    inputs, targets = on(device, case.batch(2))
    case.torch_loss(model(*inputs), targets).backward()
    return worker, model, optimizer


def one_step(name: str, device: str) -> Estimate:
    worker, _, optimizer = prepared(name, device)
    worker.check_next()
    with worker.around_step(*on(device, CASES[name].batch(1)), step=1):
        optimizer.step()
    [estimate] = worker.drain()
    return estimate


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_DEVICE)
def test_cuda_gives_the_cpu_s_numbers(name):
    here, there = one_step(name, "cuda"), one_step(name, "cpu")
    assert here.outcome is there.outcome
    assert here.slope == pytest.approx(there.slope, rel=1e-9)
    assert here.curvature == pytest.approx(there.curvature, rel=1e-9)


@pytest.mark.gpu
def test_the_side_stream_starts_after_the_step_and_reads_nothing_that_training_writes_later():
    """The step is held back on the training stream, and all that it left is overwritten right behind it."""
    case = CASES["dlrm_bce"]
    expected = one_step("dlrm_bce", "cpu")
    worker, model, optimizer = prepared("dlrm_bce", "cuda")
    inputs, targets = on("cuda", case.batch(1))
    worker.before_step(inputs, targets, step=1)
    torch.cuda._sleep(SLEEP_CYCLES)
    optimizer.step()
    worker.after_step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    del inputs, targets
    gc.collect()
    reused = [torch.full((64, 64), torch.nan, device="cuda", dtype=torch.float64) for _ in range(200)]
    [estimate] = worker.drain()
    assert len(reused) == 200
    assert estimate.slope == pytest.approx(expected.slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(expected.curvature, rel=1e-9)


@pytest.mark.gpu
def test_a_rate_on_the_host_comes_with_the_numbers_of_the_device():
    worker, model, _ = prepared("dlrm_bce", "cuda")
    worker.close()
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    worker = StepSizeWorker(model, optimizer, CASES["dlrm_bce"].loss)
    with worker.around_step(*on("cuda", CASES["dlrm_bce"].batch(1)), step=1):
        optimizer.step()
    [estimate] = worker.drain()
    assert estimate.learning_rate == float(rate)


@pytest.mark.gpu
def test_the_host_never_waits():
    """Torch itself raises at any call that would synchronize."""
    case = CASES["dlrm_bce"]
    worker, _, optimizer = prepared("dlrm_bce", "cuda", estimators=("unbiased",))
    inputs, targets = on("cuda", case.batch(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with worker.around_step(inputs, targets, step=1):
            optimizer.step()
        early = worker.poll(step=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(early + worker.drain()) == 1


@pytest.mark.gpu
def test_the_training_stream_does_not_wait_for_the_side_stream():
    case = CASES["dlrm_bce"]
    worker, _, optimizer = prepared("dlrm_bce", "cuda")
    assert isinstance(worker._lane, SideStream)
    with torch.cuda.stream(worker._lane.stream):
        torch.cuda._sleep(10 * SLEEP_CYCLES)
    with worker.around_step(*on("cuda", case.batch(1)), step=1):
        optimizer.step()
    torch.cuda.current_stream().synchronize()
    assert worker.poll() == [], "the training stream was through while the side stream still slept"
    assert len(worker.drain()) == 1


@pytest.mark.gpu
def test_a_busy_worker_drops_and_counts():
    case = CASES["dlrm_bce"]
    worker, _, optimizer = prepared("dlrm_bce", "cuda")
    assert isinstance(worker._lane, SideStream)
    with torch.cuda.stream(worker._lane.stream):
        torch.cuda._sleep(10 * SLEEP_CYCLES)
    batch = on("cuda", case.batch(1))
    with worker.around_step(*batch, step=1) as first:
        optimizer.step()
    with worker.around_step(*batch, step=2) as second:
        optimizer.step()
    assert (first, second) == (True, False)
    found = worker.drain(step=3)
    assert [(estimate.step, estimate.outcome) for estimate in found][:1] == [(2, Outcome.DROPPED)]
    assert [estimate.age for estimate in found] == [1, 2]
    assert worker.counts["dropped"] == 1


def test_at_most_one_is_in_flight_whatever_the_device():
    case = CASES["mlp_cross_entropy"]
    lane = LaggingLane(0)
    worker, _, optimizer = prepared("mlp_cross_entropy", "cpu", max_age=3, lane=lane)
    lane.lag = 4
    for step in (1, 2, 3):
        with worker.around_step(*case.batch(step), step=step) as measured:
            optimizer.step()
        assert measured is (step == 1)
        dropped = worker.poll(step=step)
        assert [estimate.outcome for estimate in dropped] == ([] if step == 1 else [Outcome.DROPPED])
    for _ in range(4):
        lane.tick()
    [late] = worker.poll(step=5)
    assert (late.step, late.age, late.outcome) == (1, 4, Outcome.STALE)
    with worker.around_step(*case.batch(6), step=6) as measured:
        optimizer.step()
    assert measured
    assert len(worker.drain(step=6)) == 1
    assert (worker.counts["dropped"], worker.counts["stale"], worker.counts.total()) == (2, 1, 5)
