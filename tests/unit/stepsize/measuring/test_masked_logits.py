"""Logits without a say, masked or common to all: what counts as rounding is judged on what the loss sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stepsize import AutogradLoss, Outcome, StepSizeWorker

LEAST = torch.finfo(torch.float32).min
CE, BCE, MSE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.MSELoss()


def each_row(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(z, y, reduction="none")


class Body(nn.Module):
    """x (R, 6) → (R, 6) logits, of which `change` makes what the loss is given."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.body(x), x)


def estimated(change: Any, loss: Any, targets: Any, *, rate: float = 1e-4, rows: int = 64, **options: Any):
    """One float32 AdamW step at `rate` with B1 = B2's kind; `targets` makes them of the inputs."""
    torch.manual_seed(0)
    model, g = Body(change), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    worker = StepSizeWorker(model, optimizer, loss, **options)
    x1, x2 = torch.randn(2, rows, 6, generator=g)
    z = model(x2)
    plain = loss.function(z, targets(x2)).mean() if isinstance(loss, AutogradLoss) else loss(z, targets(x2))
    plain.backward()
    with worker.around_step(x1, targets(x1), step=0):
        optimizer.step()
    [estimate] = worker.poll(step=0)
    return estimate


def same(found: Any, twin: Any, rel: float = 1e-3) -> None:
    assert found.outcome is twin.outcome
    assert found.outcome in (Outcome.OK, Outcome.ASCENT)
    assert found.relative == pytest.approx(twin.relative, rel=rel)


def classes(x: Tensor) -> Tensor:
    return x[:, :4].argmax(1)


def last_two(value: float):
    mask = torch.tensor([0, 0, 0, 0, 1, 1], dtype=torch.bool)
    return lambda z, x: z.masked_fill(mask, value)


@pytest.mark.parametrize("value", [-torch.inf, LEAST, -1e9, -1e4])
@pytest.mark.parametrize("loss", [CE, AutogradLoss(each_row)], ids=["closed form", "autograd"])
@pytest.mark.parametrize("rate", [1e-2, 1e-6])
def test_masked_classes_have_no_say(value, loss, rate):
    twin = estimated(lambda z, x: z[:, :4], loss, classes, rate=rate)
    same(estimated(last_two(value), loss, classes, rate=rate), twin)


@pytest.mark.parametrize("value", [-1e9, -1e4, -torch.inf])
def test_masks_that_are_added_and_differ_from_row_to_row_have_no_say(value):
    """Each row may take four classes in a circle; the twin has them gathered."""

    def allowed(x: Tensor) -> Tensor:
        first = (x[:, 5] > 0).long()
        return (first[:, None] + torch.arange(4)) % 6

    def masked(z: Tensor, x: Tensor) -> Tensor:
        open_ = torch.zeros_like(z, dtype=torch.bool).scatter(1, allowed(x), value=True)
        return z + torch.where(open_, 0.0, value)

    def target(x: Tensor) -> Tensor:
        return allowed(x).gather(1, classes(x)[:, None]).squeeze(1)

    twin = estimated(lambda z, x: z.gather(1, allowed(x)), CE, classes)
    same(estimated(masked, CE, target), twin)


@pytest.mark.parametrize("value", [-torch.inf, LEAST, -1e9])
def test_the_secant_s_masked_logits_have_no_say_either(value):
    twin = estimated(lambda z, x: z[:, :4], CE, classes, method="secant", rate=1e-3)
    same(estimated(last_two(value), CE, classes, method="secant", rate=1e-3), twin)


@pytest.mark.parametrize("value", [-1e9, LEAST])
def test_masked_labels_of_a_binary_loss_have_no_say(value):
    def some(x: Tensor) -> Tensor:
        return torch.cat([(x[:, :4] > 0).float(), torch.zeros(len(x), 2)], 1)

    def twin_loss(z: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(z[:, :4], y[:, :4], reduction="none").sum(1) / 6

    twin = estimated(lambda z, x: z, AutogradLoss(twin_loss), some)
    same(estimated(last_two(value), BCE, some), twin)


@pytest.mark.parametrize("offset", [1e2, 1e4])
@pytest.mark.parametrize("rate", [1e-3, 1e-6])
def test_a_part_common_to_all_classes_has_no_say(offset, rate):
    """In float32 the softmax itself keeps few digits beside a large offset, but the step is not rounding."""
    twin = estimated(lambda z, x: z[:, :4], CE, classes, rate=rate)
    same(estimated(lambda z, x: z[:, :4] + offset, CE, classes, rate=rate), twin, rel=0.05)


@pytest.mark.parametrize("rate", [1e-3, 1e-6])
def test_a_part_common_to_all_rows_has_no_say(rate):
    """Years: targets about 2000, and an output that begins there."""
    twin = estimated(lambda z, x: z[:, :1], MSE, lambda x: x[:, :1], rate=rate)
    same(estimated(lambda z, x: z[:, :1] + 2000, MSE, lambda x: x[:, :1] + 2000, rate=rate), twin, rel=0.01)
    huber = AutogradLoss(lambda z, y: functional.huber_loss(z, y, reduction="none").mean(1))
    twin = estimated(lambda z, x: z[:, :1], huber, lambda x: x[:, :1], rate=rate)
    same(estimated(lambda z, x: z[:, :1] + 2000, huber, lambda x: x[:, :1] + 2000, rate=rate), twin, rel=0.01)


def test_a_step_along_the_common_part_alone_is_flat():
    """All logits of a row move together: softmax sees nothing of it, and what is left is rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    last: Any = model[0]
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters(), lr=1.0), CE)
    x = torch.randn(64, 6)
    with worker.around_step(x, classes(x), step=0), torch.no_grad():
        last.bias.add_(0.37)
    [estimate] = worker.poll(step=0)
    assert estimate.outcome is Outcome.FLAT
