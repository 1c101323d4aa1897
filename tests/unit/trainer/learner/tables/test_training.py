"""Training with tables kept by rows against every row moved at every step: rates, α*, averages, stops; bit for bit."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stepsize.losses import BCEWithLogits
from stepsize.policies import StepSizeConfig, make_policy, set_learning_rate
from stepsize.worker import StepSizeWorker
from tests.resume import assert_identical, through_a_checkpoint
from trainer.learner.averaging import build_average
from trainer.learner.config import ModelConfig, OptimizerConfig
from trainer.learner.model import build_model
from trainer.learner.optimizers import build_optimizer
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


class Run:
    """A click model in training, as the trainer trains it: rates from a policy, α* on the side, perhaps averaged."""

    def __init__(self, table: Any, *, average: Average, policy: Any, steps: int, **measuring: Any) -> None:
        sizes = ModelConfig(table_rows=ROWS, embedding_dim=4, bottom=(8, 4), top=(8, 1))
        config = OptimizerConfig(table=table, average=average, average_decay=0.9).resolved("dlrm-tiny")
        self.model = build_model(sizes, dense_features=3, sparse_features=SPARSE, seed=0)
        self.optimizer = build_optimizer(config, self.model)
        self.average = build_average(config, self.model)
        every_step: dict[str, Any] = {"interval": 1, "count": 1, "start": 0} if policy == "observe" else {}
        self.policy = make_policy(StepSizeConfig(policy=policy, **every_step), initial_rate=1e-3, total_steps=steps)
        self.worker = StepSizeWorker(self.model, self.optimizer, BCEWithLogits(), **measuring)
        self.seen: list[Any] = []

    def advance(self, steps: range) -> None:
        for step in steps:
            dense, ids, label = click_batch(step)
            scheduled = 1e-3 * (1.0 + math.sin(step / 40) ** 2)
            rate = self.policy.learning_rate(step, scheduled)
            set_learning_rate(self.optimizer, rate)
            loss = binary_cross_entropy_with_logits(self.model(dense, ids), label)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            *b1, b1_label = click_batch(step + 1)
            measured = self.policy.wants(step) and self.worker.before_step(
                tuple(b1), b1_label, train_inputs=(dense, ids), train_targets=label, step=step
            )
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
            if measured:
                self.worker.after_step()
            estimates = self.worker.poll(step=step)
            for estimate in estimates:
                self.policy.observe(estimate)
            self.seen.append((rate, loss.item(), [vars(estimate) for estimate in estimates]))

    def answers(self) -> Tensor:
        """Logits on a batch of rows seldom seen, of the averaged weights if there are."""
        dense, _, _ = click_batch(0)
        ids = torch.arange(SPARSE * BATCH).reshape(SPARSE, BATCH) * 101 % ROWS
        with torch.no_grad():
            if self.average is None:
                return self.model(dense, ids)
            with self.average.applied():
                return self.model(dense, ids)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "policy": self.policy.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.policy.load_state_dict(state["policy"])


@pytest.mark.parametrize(
    ("average", "policy"), [("none", "none"), ("none", "auto"), ("ema", "auto"), ("polyak", "none")]
)
def test_500_steps_with_a_stop_in_between_are_those_of_the_dense_table(average: Average, policy: Any) -> None:
    dense = Run("dense", average=average, policy=policy, steps=500)
    assert not isinstance(dense.model.table.weight, LazyWeight)
    dense.advance(range(210))
    saved = through_a_checkpoint(dense.state())
    dense.advance(range(210, 500))

    first = Run("lazy", average=average, policy=policy, steps=500)
    assert isinstance(first.model.table.weight, LazyWeight)
    first.advance(range(150))
    assert_identical(first.answers(), first.answers())  # an evaluation on the way
    first.advance(range(150, 210))
    assert_identical(through_a_checkpoint(first.state()), saved, "at the stop")

    # the state of either continues as the other
    for table, state in (("lazy", through_a_checkpoint(first.state())), ("lazy", saved), ("dense", first.state())):
        second = Run(table, average=average, policy=policy, steps=500)
        second.restore(copy.deepcopy(through_a_checkpoint(state)))
        second.advance(range(210, 500))
        assert first.seen + second.seen == dense.seen
        assert_identical(second.answers(), dense.answers())
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
    dense, lazy = (Run(table, average="none", policy="observe", steps=12, **measuring) for table in ("dense", "lazy"))
    for run in (dense, lazy):
        run.advance(range(12))
    assert all(estimates for _, _, estimates in dense.seen)
    assert_identical(repr(lazy.seen), repr(dense.seen))


def test_the_average_may_be_taken_at_any_steps() -> None:
    found = []
    for table in ("dense", "lazy"):
        run = Run(table, average="polyak", policy="none", steps=30)
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
