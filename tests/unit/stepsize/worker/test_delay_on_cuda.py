"""A delay where it is for: on a device whose side stream is behind the host by a time that nobody knows."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from stepsize import Estimate, StepSizeWorker
from stepsize.measuring.handoff import SideStream
from tests.cases import CASES

pytestmark = pytest.mark.gpu
CASE = CASES["dlrm_bce"]
SLEEP_CYCLES = 20_000_000
"""About a hundredth of a second of a GPU: many steps of this model."""


def on(device: str, value: tuple[tuple[torch.Tensor, ...], torch.Tensor]):
    return tuple(tensor.to(device) for tensor in value[0]), value[1].to(device)


SGD = partial(torch.optim.SGD, lr=0.1)


def trained(
    device: str,
    steps: int,
    *,
    delay: int,
    asleep: Any = lambda step: False,
    optimizer_of: Any = SGD,
    strict: bool = False,
) -> list[Estimate]:
    """Estimates in the order handed over; before the steps that are `asleep` the side stream is held back."""
    model = CASE.model().to(device)
    optimizer = optimizer_of(model.parameters())
    lane = SideStream(torch.device(device)) if device == "cuda" else None
    worker = StepSizeWorker(model, optimizer, CASE.loss, delay=delay, lane=lane, self_check=False)
    batches = [on(device, CASE.batch(seed)) for seed in range(2 * steps)]
    found: list[Estimate] = []
    for step in range(steps):
        inputs, targets = batches[2 * step]
        optimizer.zero_grad()
        CASE.torch_loss(model(*inputs), targets).backward()
        if lane is not None and asleep(step):
            with torch.cuda.stream(lane.stream):
                torch.cuda._sleep(SLEEP_CYCLES)
        torch.cuda.set_sync_debug_mode("error" if strict and step else "default")
        try:
            with worker.around_step(*batches[2 * step + 1], step=step):
                optimizer.step()
            found += worker.poll(step=step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found + worker.flush(step=steps - 1)


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_ages_are_the_delay_whatever_the_side_stream_does(delay):
    kept_up = trained("cuda", 12, delay=delay)
    behind = trained("cuda", 12, delay=delay, asleep=lambda step: step % 3 == 0)
    assert kept_up == behind, "bit for bit"
    assert [(one.step, one.age) for one in kept_up] == [(step, min(delay, 11 - step)) for step in range(12)]
    here = trained("cpu", 12, delay=delay)
    assert [one.slope for one in kept_up] == pytest.approx([one.slope for one in here], rel=1e-9)


def test_a_rate_on_the_device_is_read_without_waiting_for_its_stream():
    """Torch itself raises at any call that would synchronize, from the second step on."""
    rate = torch.tensor(0.1, device="cuda", dtype=torch.float64)
    made = partial(torch.optim.AdamW, lr=rate, capturable=True)  # SGD itself waits for such a rate
    assert [one.learning_rate for one in trained("cuda", 8, delay=4, optimizer_of=made, strict=True)] == [0.1] * 8


def test_memory_of_what_is_under_way_is_given_back():
    trained("cuda", 4, delay=4)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    trained("cuda", 40, delay=4, asleep=lambda step: step % 3 == 0)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
