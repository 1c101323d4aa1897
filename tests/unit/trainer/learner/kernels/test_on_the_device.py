"""What the kernels' other tests, which run on a device too, cannot see on the CPU: streams, waiting, a real table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.resume import assert_identical
from trainer.learner import kernels
from trainer.learner.averaging import WeightAverage
from trainer.learner.nadamw import NAdamW
from trainer.learner.tables import LazyNAdamW, LazyWeight, keep_by_rows

pytestmark = pytest.mark.gpu

ROWS, WIDTH, LOOK_UPS = 20_000, 128, 4096


class OneTable(nn.Module):
    """A table with a layer on top, on the device; `step` makes one optimizer step."""

    def __init__(self, *, whole: bool = False, average: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ROWS, WIDTH)
        self.head = nn.Linear(WIDTH, 1)
        self.to("cuda")
        keep_by_rows(self)
        assert isinstance(self.table.weight, LazyWeight)
        self.whole = whole
        self.optimizer = LazyNAdamW(self.parameters(), lr=1e-3)
        self.average = WeightAverage(self, "ema", decay=0.9) if average else None

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).sin()).square().mean()

    def step(self, ids: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self(ids).backward()
        if self.whole:
            self.table.weight.grad = made_whole(self.table.weight.grad)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def values(self) -> list[Tensor]:
        moments = [self.optimizer.state[self.table.weight][name] for name in ("exp_avg", "exp_avg_sq")]
        averages = [] if self.average is None else [self.average.state_dict()["table.weight"]]
        return [tensor.detach().clone() for tensor in (*self.parameters(), *moments, *averages)]


def made_whole(gradient: Any) -> Tensor:
    """The gradient of a table moved whole, with the sums of one kept by rows."""
    from trainer.learner.kernels import launches

    found = launches.sum_by_row(gradient._indices()[0], gradient._values())
    count = int(found.segments[-1]) + 1
    dense = torch.zeros(gradient.shape, device=gradient.device)
    dense[found.rows[:count]] = found.sums[:count]
    return dense


def batches(count: int) -> list[Tensor]:
    """Skewed ids, so that one row has a long segment and most are seldom looked up."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(LOOK_UPS, generator=generator) ** 6 * ROWS).long().to("cuda") for _ in range(count)]


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("average", [False, True])
def test_100_steps_are_those_of_the_table_moved_whole(average: bool) -> None:
    dense, lazy = OneTable(whole=True, average=average), OneTable(average=average)
    for number, ids in enumerate(batches(100)):
        for model in (dense, lazy):
            model.step(ids)
            if number == 60:
                model.table.weight.sum()  # all rows
    assert_identical(lazy.values(), dense.values())


def test_the_fused_pass_is_the_compiled_one_of_the_cpu() -> None:
    assert kernels.unusable(torch.device("cuda", torch.cuda.current_device())) is None
    generator = torch.Generator().manual_seed(0)
    shapes = [(512, 13), (512,), (1, 256), (1,), (3_000_001,)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    trained = {device: [nn.Parameter(value.clone().to(device)) for value in start] for device in ("cpu", "cuda")}
    optimizers = {device: NAdamW(parameters, lr=1e-2) for device, parameters in trained.items()}
    for _ in range(30):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for device, parameters in trained.items():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.to(device)
            optimizers[device].step()
    found = [parameter.detach().cpu() for parameter in trained["cuda"]]
    assert_identical(found, [parameter.detach() for parameter in trained["cpu"]])


@pytest.mark.parametrize("average", [False, True])
def test_the_host_never_waits_in_a_step(average: bool) -> None:
    model = OneTable(average=average)
    first, *others = batches(12)
    model.step(first)  # compiles
    with waiting_forbidden():
        for ids in others:
            model.step(ids)
            model(ids.flip(0))
    with pytest.raises(RuntimeError, match="synchroniz"), waiting_forbidden():
        float(model(first))


@pytest.mark.parametrize("ordered", [True, False])
def test_a_read_on_another_stream_changes_turns_with_training(ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While training's stream is held up, a side stream reads rows; without turns it would read too early."""
    expected = OneTable()
    model = OneTable()
    *first, last = batches(8)
    for ids in first:
        model.step(ids)
        expected.step(ids)
    before = expected.table.weight.detach().index_select(0, last)
    expected.step(last)
    wanted = expected.table.weight.detach().index_select(0, last)
    expected.step(last)
    after = expected.table.weight.detach().index_select(0, last)
    torch.cuda.synchronize()
    if not ordered:
        monkeypatch.setattr(kernels.DeviceTable, "_take_turn", lambda table: None)
    side = torch.cuda.Stream()
    torch.cuda._sleep(200_000_000)
    model.step(last)
    with torch.cuda.stream(side):
        seen = model.table.weight.detach().index_select(0, last)
    model.step(last)  # waits for the side stream's read, or moves the rows under it
    torch.cuda.synchronize()
    found = {name: _rows_alike(seen, rows) for name, rows in {"before": before, "here": wanted, "after": after}.items()}
    at_last = _rows_alike(model.table.weight.detach().index_select(0, last), after)
    assert torch.equal(seen, wanted) is ordered, f"of {len(last)} rows as they are {found}; {at_last} right at last"


def _rows_alike(rows: Tensor, others: Tensor) -> int:
    return int((rows == others).all(1).sum())


def test_ids_that_are_no_rows_are_left_out() -> None:
    """The look-up that follows refuses such ids, and ends the process's use of the device; so here is none."""
    model, other = OneTable(), OneTable()
    for one in (model, other):
        for ids in batches(5):
            one.step(ids)
    weight = model.table.weight
    assert isinstance(weight, LazyWeight)
    weight.table.bring_up_to_date(torch.tensor([-1, ROWS, 2**40, -(2**40)], device="cuda"))
    assert_identical(model.values(), other.values())


def test_memory_of_a_step_is_its_look_ups_not_the_table_s() -> None:
    model, ids = OneTable(), batches(1)[0]
    for _ in range(3):
        model.step(ids)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model.step(ids)
    assert torch.cuda.max_memory_allocated() - before < 12 * LOOK_UPS * WIDTH * 4
