"""Training with tables kept by rows against every row moved at every step: rates, α*, averages, stops; bit for bit."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.resume import assert_identical, through_a_checkpoint
from tests.table_run import TableRun
from trainer.learner.tables.weight import LazyWeight

Average = Literal["none", "ema", "polyak"]
ROWS, SPARSE, BATCH = 20_000, 6, 32


def click_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dense (R, 3), ids (S, R) as skewed as a click log's, and labels (R,)."""
    generator = np.random.default_rng(step)
    uniform = generator.random((SPARSE, BATCH))
    ids = ((ROWS**-0.25 - 1) * uniform + 1) ** (1 / -0.25)
    ids = (ids.astype(np.int64) * 7919) % ROWS
    label = (generator.random(BATCH) < 0.3).astype(np.float32)
    return (
        torch.from_numpy(generator.random((BATCH, 3), dtype=np.float32)),
        torch.from_numpy(ids),
        torch.from_numpy(label),
    )


def run_of(table: Any, **options: Any) -> TableRun:
    return TableRun(table, batch=click_batch, rows=ROWS, **options)


def seldom_seen() -> tuple[Tensor, Tensor]:
    """Dense inputs and ids of rows that few batches have."""
    return click_batch(0)[0], torch.arange(SPARSE * BATCH).reshape(SPARSE, BATCH) * 101 % ROWS


@pytest.mark.parametrize(
    ("average", "policy"), [("none", "none"), ("none", "auto"), ("ema", "auto"), ("polyak", "none")]
)
def test_300_steps_with_a_stop_in_between_are_those_of_the_dense_table(average: Average, policy: Any) -> None:
    dense = run_of("dense", average=average, policy=policy, steps=300)
    assert not isinstance(dense.model.table.weight, LazyWeight)
    dense.advance(range(130))
    saved = through_a_checkpoint(dense.state())
    dense.advance(range(130, 300))

    first = run_of("lazy", average=average, policy=policy, steps=300)
    assert isinstance(first.model.table.weight, LazyWeight)
    first.advance(range(90))
    assert_identical(first.answers(*seldom_seen()), first.answers(*seldom_seen()))  # an evaluation on the way
    first.advance(range(90, 130))
    assert_identical(through_a_checkpoint(first.state()), saved, "at the stop")

    # the state of either continues as the other; what the lazy one continues with is that of both
    for table, state in (("lazy", saved), ("dense", first.state())):
        second = run_of(table, average=average, policy=policy, steps=300)
        second.restore(copy.deepcopy(through_a_checkpoint(state)))
        second.advance(range(130, 300))
        assert first.seen + second.seen == dense.seen
        assert_identical(second.answers(*seldom_seen()), dense.answers(*seldom_seen()))
        assert_identical(through_a_checkpoint(second.state()), through_a_checkpoint(dense.state()), table)
    assert any(estimates for _, _, estimates in dense.seen) == (policy == "auto")


@pytest.mark.parametrize(
    "measuring",
    [
        {"estimators": ("unbiased", "biased", "hybrid"), "per_group": True},
        {"method": "secant"},
        {"diagnostics": "full"},
        {"curvature": "hessian"},
        {"tables": "dense"},
    ],
    ids=str,
)
def test_whatever_is_measured_is_what_the_dense_table_gives(measuring: dict[str, Any]) -> None:
    if "curvature" in measuring:
        pytest.importorskip("curvlinops")
    dense, lazy = (
        run_of(table, average="none", policy="observe", steps=12, **measuring) for table in ("dense", "lazy")
    )
    for run in (dense, lazy):
        run.advance(range(12))
    assert all(estimates for _, _, estimates in dense.seen)
    assert_identical(repr(lazy.seen), repr(dense.seen))


def test_the_average_may_be_taken_at_any_steps() -> None:
    found = []
    for table in ("dense", "lazy"):
        run = run_of(table, average="polyak", policy="none", steps=30)
        assert run.average is not None
        for step in range(40):
            dense, ids, label = click_batch(step)
            run.optimizer.zero_grad()
            binary_cross_entropy_with_logits(run.model(dense, ids), label).backward()
            run.optimizer.step()
            if step in {3, 20}:
                run.model(*click_batch(step + 1)[:2])  # brings rows up to date before the average is taken
            if step == 25:
                run.model.table.weight.sum()  # all rows
            for _ in range({1: 2, 5: 0, 6: 0, 11: 3}.get(step % 13, 1)):
                run.average.update()
        found.append(through_a_checkpoint(run.state()))
    dense, lazy = found
    assert_identical(lazy, dense)
