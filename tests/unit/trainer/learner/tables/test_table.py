"""Tables kept by rows against tables moved whole, in every way of reading, writing and adding up: bit for bit."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import trainer.learner.optimizers
import trainer.learner.tables.table
from tests.resume import assert_identical, through_a_checkpoint
from trainer.learner.averaging import WeightAverage
from trainer.learner.config import OptimizerConfig
from trainer.learner.nadamw import NAdamW
from trainer.learner.optimizers import build_optimizer
from trainer.learner.tables.weight import FEWEST_ELEMENTS, LazyNAdamW, LazyWeight, keep_by_rows

Make = Callable[[], nn.Module]
LARGE = FEWEST_ELEMENTS // 2
"""Rows of two columns that are worth keeping by rows."""


def pair_of(make: Make, **options: Any) -> Iterator[tuple[Any, NAdamW]]:
    """The same module twice: with NAdamW, and kept by rows with LazyNAdamW."""
    for lazy in (False, True):
        torch.manual_seed(0)
        model = make()
        if lazy:
            keep_by_rows(model)
        yield model, (LazyNAdamW if lazy else NAdamW)(model.parameters(), **{"lr": 1e-3, **options})


def states(model: Any, optimizer: NAdamW) -> list[Tensor]:
    """Every parameter and moment, as plain tensors."""
    moments = [
        optimizer.state[p][name]
        for p in model.parameters()
        if p in optimizer.state
        for name in ("exp_avg", "exp_avg_sq")
    ]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *moments)]


def assert_alike(make: Make, step: Callable[[Any, NAdamW, int], None], *, steps: int = 60, **options: Any) -> nn.Module:
    """Both after `steps` calls of `step`, which makes one optimizer step; returns the lazy one."""
    found = []
    for model, optimizer in pair_of(make, **options):
        for number in range(steps):
            step(model, optimizer, number)
        found.append((model, states(model, optimizer)))
    (_, dense), (model, lazy) = found
    assert_identical(lazy, dense)
    return model


def ids_of(step: int, rows: int, *shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(step)) ** 3 * rows).long()


class Tables(nn.Module):
    """A table read three times in a pass, one shared by two modules, one with padding, and one never read."""

    def __init__(self) -> None:
        super().__init__()
        self.thrice = nn.Embedding(50, 4)
        self.left = nn.Embedding(40, 4)
        self.right = nn.Embedding(40, 4)
        self.right.weight = self.left.weight
        self.padded = nn.Embedding(30, 4, padding_idx=2)
        self.unread = nn.Embedding(20, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, step: int) -> Tensor:
        parts = [self.thrice(ids_of(step + 1000 * call, 50, 16)) for call in range(3)]
        parts += [self.left(ids_of(step, 40, 16)), self.right(ids_of(step + 500, 40, 2, 8)).flatten(0, 1)]
        parts.append(self.padded(ids_of(step, 6, 16).int()))
        return self.head(torch.stack(parts).sin().sum(0)).square().mean()


def plain_step(model: Any, optimizer: NAdamW, step: int) -> None:
    optimizer.zero_grad(set_to_none=True)
    model(step).backward()
    optimizer.step()


def test_several_tables_however_often_they_are_read() -> None:
    lazy = assert_alike(Tables, plain_step)
    assert all(isinstance(module.weight, LazyWeight) for module in lazy.modules() if isinstance(module, nn.Embedding))


@pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {"eps": 0.0}, {"betas": (0.0, 0.5)}, {"lr": 0.0}], ids=str)
def test_any_settings(options: dict[str, Any]) -> None:
    dense, lazy = (states_after(Tables, index, options) for index in range(2))
    for one, other in zip(dense, lazy, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)


def states_after(make: Make, index: int, options: dict[str, Any]) -> list[Tensor]:
    model, optimizer = [*pair_of(make, **options)][index]
    for step in range(60):
        plain_step(model, optimizer, step)
    return states(model, optimizer)


def test_settings_that_change_on_the_way() -> None:
    def step(model: Any, optimizer: NAdamW, number: int) -> None:
        group = optimizer.param_groups[0]
        group["lr"] = 1e-3 * (1 + number % 7)
        group["weight_decay"] = 0.0 if 20 <= number < 30 else 0.1
        if number == 40:
            group["betas"] = (0.8, 0.95)
        plain_step(model, optimizer, number)

    assert_alike(Tables, step)


def test_gradients_of_two_backward_passes_add_up() -> None:
    def step(model: Any, optimizer: NAdamW, number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(number).backward()
        model(number + 7).backward()
        optimizer.step()

    assert_alike(Tables, step)


def test_steps_without_a_gradient_are_not_counted() -> None:
    def step(model: Any, optimizer: NAdamW, number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        if number % 3:
            model(number).backward()
        optimizer.step()

    assert_alike(Tables, step)


class ReadAsAWhole(nn.Module):
    """A table that is looked up, and at some steps also multiplied with, as output layers tied to it are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 4)

    def forward(self, step: int) -> Tensor:
        rows = self.table(ids_of(step, 40, 16))
        logits = functional.linear(rows, self.table.weight) if step % 3 == 0 else rows
        return logits.square().mean()


def test_a_table_that_is_read_as_a_whole_now_and_then() -> None:
    assert_alike(ReadAsAWhole, plain_step)


@pytest.mark.parametrize("threads", [1, 3])
def test_dividing_the_work_changes_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(trainer.learner.tables.table, "TASK_ROWS", 3)
    monkeypatch.setattr(trainer.learner.tables.table, "RANGE_ROWS", 7)
    monkeypatch.setattr(trainer.learner.tables.table, "LEAST_COLUMNS", 1)
    assert_alike(Tables, plain_step)


def saved_and_loaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


READS: dict[str, Callable[[Any], Any]] = {
    "arithmetic": lambda table: table.weight * 2,
    "clone": lambda table: table.weight.detach().clone(),
    "one row": lambda table: table.weight[17],
    "data": lambda table: table.weight.data + 0,
    "numpy": lambda table: table.weight.detach().numpy().copy(),
    "list": lambda table: table.weight.tolist(),
    "norm": lambda table: torch.linalg.vector_norm(table.weight.detach(), math.inf),
    "multi-tensor": lambda table: torch._foreach_norm([table.weight.detach()])[0],  # pyright: ignore[reportPrivateImportUsage]
    "state_dict": lambda table: {name: value + 0 for name, value in table.state_dict().items()},
    "checkpoint": lambda table: through_a_checkpoint(table.state_dict()),
    "deepcopy": lambda table: copy.deepcopy(table).weight.detach(),
    "torch.save": lambda table: saved_and_loaded(table.state_dict()),
    "index_select": lambda table: table.weight.detach().index_select(0, torch.tensor([3, 39, 3])),
    "look-up": lambda table: table(torch.tensor([[3], [38]])),
    "look-up of the detached": lambda table: functional.embedding(torch.tensor([37]), table.weight.detach()),
    "bag": lambda table: functional.embedding_bag(torch.tensor([[3, 36]]), table.weight),
    "max_norm": lambda table: functional.embedding(torch.tensor([3, 35]), table.weight.detach(), max_norm=1e-3),
    "closeness": lambda table: torch.allclose(table.weight, torch.zeros(40, 4)),
    "gradient": lambda table: table.weight.grad.to_dense(),
}


@pytest.mark.parametrize("read", READS, ids=str)
def test_whoever_reads_the_table_sees_the_dense_one(read: str) -> None:
    seen = []
    for model, optimizer in pair_of(lambda: nn.ModuleList([nn.Embedding(40, 4)])):
        table = model[0]
        for step in range(50):
            optimizer.zero_grad()
            table(ids_of(step, 40, 8)).square().sum().backward()
            optimizer.step()
        found = READS[read](table)
        seen.append(found.detach() if isinstance(found, Tensor) else found)
    dense, lazy = seen
    assert_identical(lazy, dense)


def test_a_detached_weight_and_a_moment_go_on_reading_the_present() -> None:
    (_, _), (model, optimizer) = pair_of(ReadAsAWhole)
    plain_step(model, optimizer, 1)
    weight = model.table.weight
    held = weight.detach(), weight.data, model.state_dict()["table.weight"], optimizer.state[weight]["exp_avg"]
    for step in (1, 2, 4, 5):
        plain_step(model, optimizer, step)
        present = [weight.clone().detach()] * 3 + [optimizer.state_dict()["state"][0]["exp_avg"].clone()]
        assert_identical([tensor.clone() for tensor in held], present)


def test_writing_into_the_table_is_not_overtaken_by_steps_before_it() -> None:
    def step(model: Any, optimizer: NAdamW, number: int) -> None:
        plain_step(model, optimizer, number)
        if number == 30:
            with torch.no_grad():
                model.table.weight.mul_(0.5)
                model.table.weight[5] = 1.0

    assert_alike(ReadAsAWhole, step)


@pytest.mark.parametrize("shape", [(7,), (26, 512), (64, 300)])
def test_a_large_batch_s_gradient_is_the_dense_one(shape: tuple[int, ...]) -> None:
    found = []
    for model, _ in pair_of(lambda: nn.ModuleList([nn.Embedding(5000, 48)])):
        rows = model[0](ids_of(3, 5000, *shape))
        rows.backward(torch.randn(rows.shape, generator=torch.Generator().manual_seed(4)))
        found.append(model[0].weight.grad)
    dense, lazy = found
    assert_identical(lazy.to_dense(), dense)


def test_the_gradient_holds_the_rows_looked_up_alone() -> None:
    (_, _), (model, optimizer) = pair_of(ReadAsAWhole)
    model(1).backward()
    gradient = model.table.weight.grad
    assert gradient.is_sparse
    assert torch.equal(gradient._indices()[0], ids_of(1, 40, 16).unique())
    optimizer.step()


@pytest.mark.parametrize("ids", [[40], [-1], [3, 4000]])
def test_an_id_that_is_no_row_is_refused_and_changes_nothing(ids: list[int]) -> None:
    def step(model: Any, optimizer: NAdamW, number: int) -> None:
        plain_step(model, optimizer, number)
        with pytest.raises(IndexError, match="out of range"):
            model.table(torch.tensor(ids))

    assert_alike(ReadAsAWhole, step, steps=20)


def weight_of(module: nn.Module, **values: Any) -> Tensor:
    """The module's first parameter, once an optimizer of these settings has been made."""
    build_optimizer(OptimizerConfig(**values), module)
    return next(module.parameters())


def test_tables_are_kept_by_rows_if_asked_for() -> None:
    assert isinstance(weight_of(nn.Embedding(9, 2), table="lazy"), LazyWeight)
    assert isinstance(weight_of(nn.Embedding(9, 2), table="lazy", average="ema"), LazyWeight)
    for table, values in ((nn.Embedding(LARGE, 2), {"table": "dense"}), (nn.EmbeddingBag(9, 2), {"table": "lazy"})):
        assert type(weight_of(table, **values)) is nn.Parameter


@pytest.mark.parametrize("values", [{}, {"table": "auto", "average": "polyak"}, {"weight_decay": 0.0}])
def test_large_tables_are_kept_by_rows_without_being_asked_for(values: dict[str, Any]) -> None:
    assert isinstance(weight_of(nn.Embedding(LARGE, 2), **values), LazyWeight)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (nn.Embedding(LARGE - 1, 2), {}),
        (nn.EmbeddingBag(LARGE, 2), {}),
        (nn.Embedding(LARGE, 2), {"name": "adamw"}),
        (nn.Embedding(LARGE, 2), {"options": {"capturable": True}}),
        (nn.Embedding(LARGE, 2, dtype=torch.float64), {}),
        (nn.Embedding(LARGE, 2, max_norm=1.0), {}),
        (nn.Embedding(LARGE, 2, scale_grad_by_freq=True), {}),
        (nn.Embedding(LARGE, 2, device="meta"), {}),
    ],
    ids=["small", "bag", "adamw", "capturable", "float64", "max_norm", "by frequency", "elsewhere"],
)
def test_by_default_what_gains_nothing_by_rows_is_moved_whole(table: nn.Module, values: dict[str, Any]) -> None:
    assert type(weight_of(table, **values)) is nn.Parameter


def test_by_default_each_table_is_judged_by_itself_and_one_that_is_read_whole_is_moved_whole() -> None:
    model = nn.ModuleDict(
        {"small": nn.Embedding(9, 2), "large": nn.Embedding(LARGE, 2), "tied": nn.Embedding(LARGE, 2)}
    )
    model["shared"], model["head"] = nn.Embedding(LARGE, 2), nn.Linear(2, LARGE)
    model["shared"].weight, model["head"].weight = model["large"].weight, model["tied"].weight
    build_optimizer(OptimizerConfig(), model)
    by_rows = {name for name, module in model.items() if isinstance(module.weight, LazyWeight)}
    assert by_rows == {"large", "shared"}


def test_averages_that_cannot_be_made_up_for_are_refused_or_taken_of_the_whole_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer.learner.optimizers, "average_rounding", lambda device: None)
    assert type(weight_of(nn.Embedding(LARGE, 2), average="ema")) is nn.Parameter
    assert isinstance(weight_of(nn.Embedding(LARGE, 2)), LazyWeight)
    with pytest.raises(ValueError, match="rounds averages"):
        weight_of(nn.Embedding(9, 2), table="lazy", average="ema")


@pytest.mark.parametrize("average", [False, True])
def test_what_is_kept_of_the_steps_is_bounded(monkeypatch: pytest.MonkeyPatch, average: bool) -> None:
    monkeypatch.setattr(trainer.learner.tables.table, "LONGEST", 7)
    histories: list[int] = []
    found = []
    for model, optimizer in pair_of(lambda: nn.Embedding(50, 3)):
        averages = WeightAverage(model, "ema", decay=0.9) if average else None
        for number in range(60):
            optimizer.zero_grad()
            model(ids_of(number, 50, 4)).square().sum().backward()
            optimizer.step()
            if averages is not None and number % 7 != 6:  # not taken just before the history is full
                averages.update()
            if isinstance(model.weight, LazyWeight):
                histories.append(model.weight.table._history.steps)
        found.append(through_a_checkpoint([model.state_dict(), averages.state_dict() if averages else None]))
    dense, lazy = found
    assert_identical(lazy, dense)
    assert max(histories) == 7


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        (nn.Embedding(9, 2), {"name": "adamw"}, "only nadamw.*'adamw'.*auto"),
        (nn.Embedding(9, 2), {"options": {"capturable": True}}, "capturable.*dense"),
        (nn.Embedding(9, 2, dtype=torch.float64), {}, "float32.*dense"),
        (nn.Embedding(9, 2, max_norm=1.0), {}, "max_norm.*dense"),
        (nn.Embedding(9, 2, device="meta"), {}, "on meta.*Triton.*not for meta.*dense"),
    ],
)
def test_what_cannot_be_kept_by_rows_is_refused_with_a_reason(table: nn.Module, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_optimizer(OptimizerConfig(table="lazy", **values), table)
    assert "\n" not in str(caught.value)
