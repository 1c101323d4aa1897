"""Tables kept by rows by the Triton kernels against tables moved whole by the compiled pass: bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainer.learner.nadamw
import trainer.learner.tables.weight
from tests.resume import assert_identical, through_a_checkpoint
from tests.table_rows import KERNELS_DEVICE
from tests.table_run import TableRun
from trainer.learner.nadamw import NAdamW, _move_fused
from trainer.learner.tables import LazyNAdamW, LazyWeight, keep_by_rows
from trainer.learner.tables.replay import HALF_ULP

device_table = pytest.importorskip(
    "trainer.learner.kernels.device_table", reason="Triton is not installed (make extras)"
)
DeviceTable, launches = device_table.DeviceTable, device_table.launches

Averaging = Callable[[int], list[float]]
"""The weights of the averages taken after a step."""


def by_the_kernels(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """From now on tables and whole tensors are moved by the Triton kernels."""
    monkeypatch.setattr(trainer.learner.tables.weight, "table_for", lambda weight: DeviceTable(weight, **options))
    monkeypatch.setattr(trainer.learner.nadamw, "_way_of", lambda piece: _move_fused)


def ids_of(step: int, rows: int, *shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(step)) ** 3 * rows).long().to(KERNELS_DEVICE)


class Tables(nn.Module):
    """A table read twice in a pass, one shared by two modules, one with padding, and one never read."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Embedding(12, 4)
        self.left = nn.Embedding(8, 4)
        self.right = nn.Embedding(8, 4)
        self.right.weight = self.left.weight
        self.padded = nn.Embedding(7, 4, padding_idx=2)
        self.unread = nn.Embedding(3, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, step: int) -> Tensor:
        parts = [self.twice(ids_of(step + 1000 * call, 12, 4)) for call in range(2)]
        parts += [self.left(ids_of(step, 8, 4)), self.right(ids_of(step + 500, 8, 2, 2)).flatten(0, 1)]
        parts.append(self.padded(ids_of(step, 6, 4).int()))
        return self.head(torch.stack(parts).sin().sum(0)).square().mean()


def made_whole(gradient: Tensor) -> Tensor:
    """The gradient of a table moved whole, with the sums of one kept by rows."""
    found = launches.sum_by_row(gradient._indices()[0], gradient._values())
    count = int(found.segments[-1]) + 1
    dense = torch.zeros(gradient.shape, device=gradient.device)
    dense[found.rows[:count]] = found.sums[:count]
    return dense


def trained(
    steps: int, averaging: Averaging, change: Callable[[NAdamW, int], None], *, whole: bool, **options: Any
) -> list[Tensor]:
    """Parameters, moments and averages; with `whole` every row is moved at every step, with the same sums."""
    torch.manual_seed(0)
    model = Tables().to(KERNELS_DEVICE)
    keep_by_rows(model)
    optimizer = LazyNAdamW(model.parameters(), **{"lr": 1e-3, **options})
    tables = [weight for weight in model.parameters() if isinstance(weight, LazyWeight)]
    averages = [weight.detach().clone() for weight in tables]
    for weight, average in zip(tables, averages, strict=True):
        weight.table.follow_average(average)
    for step in range(steps):
        change(optimizer, step)
        optimizer.zero_grad(set_to_none=True)
        model(step).backward()
        for weight in tables:
            if whole and weight.grad is not None:
                weight.grad = made_whole(weight.grad)
        optimizer.step()
        if step % 7 == 3:
            model(step + 1)  # brings rows up to date before the average is taken
        if step % 11 == 5:
            model.twice.weight.sum()  # all rows
        for taken in averaging(step):
            for weight in tables:
                if weight.grad is not None:
                    weight.table.take_average(taken)
    moments = [optimizer.state[p][n] for p in tables if p in optimizer.state for n in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *moments, *averages)]


def no_average(step: int) -> list[float]:
    return []


def no_change(optimizer: NAdamW, step: int) -> None:
    pass


def settings_that_change(optimizer: NAdamW, step: int) -> None:
    optimizer.param_groups[0]["lr"] = 1e-3 * (1 + step % 7)
    optimizer.param_groups[0]["weight_decay"] = 0.0 if 4 <= step < 8 else 0.1
    if step == 10:
        optimizer.param_groups[0]["betas"] = (0.9, 0.99)


AVERAGES: dict[str, Averaging] = {
    "none": no_average,
    "ema": lambda step: [max(0.1, 1 / (step + 1))],
    "at any steps": lambda step: [1 / (step + 1)] * {1: 2, 5: 0, 6: 0, 11: 3}.get(step % 13, 1),
}


@pytest.mark.parametrize("averaging", ["none", "at any steps"])
def test_several_tables_however_often_they_are_read(averaging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, by_rows = trained_both_ways(monkeypatch, 13, AVERAGES[averaging], no_change)
    assert_identical(by_rows, whole)


def trained_both_ways(
    monkeypatch: pytest.MonkeyPatch, steps: int, averaging: Averaging, change: Callable[[NAdamW, int], None], **kw: Any
) -> list[list[Tensor]]:
    with monkeypatch.context() as patched:
        patched.setattr(trainer.learner.tables.weight, "table_for", DeviceTable)
        whole = trained(steps, averaging, change, whole=True, **kw)
    by_the_kernels(monkeypatch)
    return [whole, trained(steps, averaging, change, whole=False, **kw)]


@pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {"eps": 0.0}, {"betas": (0.0, 0.5)}, {"lr": 1e3}], ids=str)
def test_any_settings(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, by_rows = trained_both_ways(monkeypatch, 6, no_average, no_change, **options)
    for one, other in zip(whole, by_rows, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("longest", [5])
def test_settings_that_change_on_the_way_and_histories_of_any_length(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_table, "LONGEST", longest)
    whole, by_rows = trained_both_ways(monkeypatch, 14, AVERAGES["ema"], settings_that_change)
    assert_identical(by_rows, whole)


WITHHELD = {0, 3, 4, 7, 8, 9, 11}


def withheld_now_and_then(optimizer: NAdamW, step: int) -> None:
    optimizer.found_inf = torch.tensor(float(step in WITHHELD), device=KERNELS_DEVICE)


@pytest.mark.parametrize(("averaging", "rate"), [("none", 1e-12), ("ema", 1e-3)])
def test_steps_that_only_the_device_knows_to_be_withheld(
    averaging: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are behind learn of them as they catch up, also those that have long come to rest."""
    whole, by_rows = trained_both_ways(monkeypatch, 13, AVERAGES[averaging], withheld_now_and_then, lr=rate)
    assert_identical(by_rows, whole)


SPARSE, BATCH, ROWS = 3, 3, 40


def click_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dense (R, 3), ids (S, R), few enough for one chunk of a sum, and labels (R,)."""
    generator = torch.Generator().manual_seed(step)
    assert SPARSE * BATCH <= launches.CHUNK
    dense, label = torch.rand(BATCH, 3, generator=generator), (torch.rand(BATCH, generator=generator) < 0.4).float()
    return dense, ids_of(step, ROWS, SPARSE, BATCH), label


def run_of(table: Any, average: Any) -> TableRun:
    return TableRun(table, batch=click_batch, rows=ROWS, average=average, policy="auto", steps=60)


on_the_cpu = pytest.mark.skipif(
    KERNELS_DEVICE.type != "cpu", reason="a model on a device is not the CPU's, bit for bit, whatever its optimizer"
)


@on_the_cpu
@pytest.mark.parametrize("average", ["none", "ema"])
def test_a_training_with_a_stop_in_between_is_that_of_the_dense_table_on_the_cpu(
    average: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = run_of("dense", average)
    dense.advance(range(7))
    saved = through_a_checkpoint(dense.state())
    dense.advance(range(7, 17))
    by_the_kernels(monkeypatch)
    first = run_of("lazy", average)
    assert isinstance(first.model.table.weight, LazyWeight)
    assert isinstance(first.model.table.weight.table, DeviceTable)
    first.advance(range(4))
    first.answers(*click_batch(77)[:2])
    first.advance(range(4, 7))
    assert_identical(through_a_checkpoint(first.state()), saved, "at the stop")
    second = run_of("lazy", average)
    second.restore(saved)
    second.advance(range(7, 17))
    assert first.seen + second.seen == dense.seen
    assert any(estimates for _, _, estimates in dense.seen)
    assert_identical(second.answers(*click_batch(77)[:2]), dense.answers(*click_batch(77)[:2]))
    assert_identical(through_a_checkpoint(second.state()), through_a_checkpoint(dense.state()))


@on_the_cpu
def test_a_larger_bound_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = run_of("dense", "none")
    dense.advance(range(20))
    by_the_kernels(monkeypatch, negligible=HALF_ULP * 2.0**12)
    lazy = run_of("lazy", "none")
    lazy.advance(range(20))
    assert not torch.equal(lazy.model.table.weight, dense.model.table.weight)
