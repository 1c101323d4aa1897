"""A step whose numbers are not finite moves nothing, whatever keeps the table; any other step is what it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.resume import assert_identical, through_a_checkpoint
from tests.table_run import TableRun
from tests.unit.trainer.learner.tables.test_training import click_batch, run_of, seldom_seen
from trainer.divergence import NumberCheck, step_unless
from trainer.divergence.check import LIMIT
from trainer.learner.config import OptimizerConfig
from trainer.learner.optimizers import build_optimizer

BAD = {4, 5, 11}
"""Steps whose gradient is planted."""


def checked_steps(run: TableRun, steps: range, *, bad: set[int], value: float = math.nan) -> list[Any]:
    """Trains `run` as `advance` does, each step checked; what its loss or inputs are on `bad` steps is `value`."""
    check = NumberCheck(run.model)
    causes = []
    for step in steps:
        dense, ids, label = click_batch(step)
        if step in bad:
            dense = dense.clone()
            dense[3, 1] = value
        with check.forward():
            logits = run.model(dense, ids)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        found = check.sizes((dense, ids), loss)
        step_unless(run.optimizer, found.withheld)
        if run.average is not None:
            run.average.update()
        cause = found.cause_of(found.sizes.tolist())
        causes.append(None if cause is None else cause.kind)
    return causes


@pytest.mark.parametrize("average", ["none", "ema", "polyak"])
def test_tables_by_rows_and_whole_ones_withhold_alike(average: Any) -> None:
    dense, lazy = (run_of(table, average=average, policy="none", steps=60) for table in ("dense", "lazy"))
    for run in (dense, lazy):
        causes = checked_steps(run, range(40), bad=BAD)
        assert [step for step, cause in enumerate(causes) if cause] == sorted(BAD)
        assert {cause for cause in causes if cause} == {"input"}
    assert_identical(through_a_checkpoint(lazy.state()), through_a_checkpoint(dense.state()))
    assert_identical(lazy.answers(*seldom_seen()), dense.answers(*seldom_seen()))


@pytest.mark.parametrize("table", ["dense", "lazy"])
def test_a_withheld_step_leaves_weights_and_moments_to_the_bit_and_counts(table: Any) -> None:
    run = run_of(table, average="none", policy="none", steps=60)
    checked_steps(run, range(10), bad=set())
    before = copy.deepcopy(through_a_checkpoint(run.state()))
    checked_steps(run, range(10, 11), bad={10})
    after = through_a_checkpoint(run.state())
    for state in after["optimizer"]["state"].values():
        assert state["step"] == 11
        state["step"].sub_(1)
    assert_identical(after, before)


@pytest.mark.parametrize("table", ["dense", "lazy"])
def test_steps_that_are_finite_are_what_they_are_unchecked(table: Any) -> None:
    plain, checked = (run_of(table, average="ema", policy="none", steps=60) for _ in range(2))
    checked_steps(checked, range(30), bad=set())
    for step in range(30):
        dense, ids, label = click_batch(step)
        plain.optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.binary_cross_entropy_with_logits(plain.model(dense, ids), label).backward()
        plain.optimizer.step()
        assert plain.average is not None
        plain.average.update()
    assert_identical(through_a_checkpoint(checked.state()), through_a_checkpoint(plain.state()))


class TwoTables(nn.Module):
    """A table that is only looked up, one that is also read whole, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_up, self.tied = nn.Embedding(8, 3), nn.Embedding(5, 3)
        self.layer = nn.Linear(3, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.looked_up(ids) + self.tied(ids % 5)
        return self.layer(rows).sum() + self.tied.weight.sum()


def found_of(model: nn.Module, plant: dict[str, float]) -> Any:
    """What is found of a step of `model`, its gradients multiplied on their way by what is planted."""
    check = NumberCheck(model)
    ids = torch.tensor([1, 2, 2, 7])
    for name, parameter in model.named_parameters():
        if name in plant and "looked_up" not in name:
            parameter.register_hook(lambda gradient, factor=plant[name]: gradient * factor)
    with check.forward():
        loss = model(ids)
    handle = None
    if "looked_up.weight" in plant:

        def spoil(module: Any, grad_input: Any, grad_output: Any) -> Any:
            return (grad_input[0] * plant["looked_up.weight"],)

        handle = model.layer.register_full_backward_hook(spoil)  # pyright: ignore[reportAttributeAccessIssue]
        with check.forward():
            loss = model(ids)
    model.zero_grad()
    loss.backward()
    if handle is not None:
        handle.remove()
    return check.sizes((torch.ones(4),), loss)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, LIMIT])
@pytest.mark.parametrize("name", ["tied.weight", "layer.weight", "layer.bias", "looked_up.weight"])
def test_the_gradient_that_is_not_finite_is_named(name: str, value: float) -> None:
    torch.manual_seed(0)
    found = found_of(TwoTables(), {name: value * 100 if value == LIMIT else value})
    assert found.withheld.item() == 1.0
    cause = found.cause_of(found.sizes.tolist())
    assert cause.kind == "gradient"
    if name != "looked_up.weight":
        assert f"gradient of {name} is" in cause.what


def test_finite_numbers_are_no_cause() -> None:
    found = found_of(TwoTables(), {})
    assert found.withheld.item() == 0.0
    assert found.cause_of(found.sizes.tolist()) is None


def test_inputs_and_loss_come_first() -> None:
    model = TwoTables()
    check = NumberCheck(model)
    with check.forward():
        loss = model(torch.tensor([1])) * math.nan
    loss.backward()
    assert check.sizes((torch.ones(2),), loss).cause_of([1.0, math.nan, *[math.nan] * 4]).kind == "loss"  # pyright: ignore[reportOptionalMemberAccess]
    found = check.sizes((torch.tensor([math.inf]),), loss)
    assert found.cause_of(found.sizes.tolist()).what == "an input is inf"  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"momentum": 0.9}),
        ("adamw", {}),
        ("adamw", {"fused": True}),
        ("adagrad", {}),
        ("muon", {}),
        ("nadamw", {}),
    ],
    ids=str,
)
def test_every_optimizer_leaves_weights_and_moments_alone(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = TwoTables()
    optimizer = build_optimizer(OptimizerConfig(name=name, lr=0.1, options=options), model)
    for flag in (0.0, 1.0, 0.0):
        model.zero_grad()
        model(torch.tensor([1, 2, 3])).backward()
        before = through_a_checkpoint({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        step_unless(optimizer, torch.tensor(flag))
        after = through_a_checkpoint({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        for state in (*before["optimizer"]["state"].values(), *after["optimizer"]["state"].values()):
            state.pop("step", None)
        if flag:
            assert_identical(after, before)
        else:
            assert any(not torch.equal(after["model"][key], before["model"][key]) for key in after["model"])
