"""A click model's training through optimizer, average and worker, for tests of how its table is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stepsize import Horizon, StepSizeWorker
from stepsize.losses import BCEWithLogits
from stepsize.policies import StepSizeConfig, make_policy, set_learning_rate
from trainer.learner.averaging import build_average
from trainer.learner.config import ModelConfig, OptimizerConfig
from trainer.learner.model import build_model
from trainer.learner.optimizers import build_optimizer


class TableRun:
    """A click model in training, as the trainer trains it: rates from a policy, α* on the side, perhaps averaged.

    `batch` gives a step's dense (R, 3), ids (S, R) of a table of `rows` rows, and labels (R,); B1 is the next step's.
    """

    def __init__(
        self,
        table: Any,
        *,
        batch: Callable[[int], tuple[Tensor, Tensor, Tensor]],
        rows: int,
        average: Any,
        policy: Any,
        steps: int,
        **measuring: Any,
    ) -> None:
        self._batch = batch
        sizes = ModelConfig(table_rows=rows, embedding_dim=4, bottom=(8, 4), top=(8, 1))
        config = OptimizerConfig(table=table, average=average, average_decay=0.9).resolved("dlrm-tiny")
        self.model = build_model(sizes, dense_features=3, sparse_features=len(batch(0)[1]), seed=0)
        self.optimizer = build_optimizer(config, self.model)
        self.average = build_average(config, self.model)
        every_step: dict[str, Any] = (
            {"interval": 1, "count": 1, "start": 0} if policy == "observe" or steps < 100 else {}
        )
        self.policy = make_policy(StepSizeConfig(policy=policy, **every_step), initial_rate=1e-3, total_steps=steps)
        self.worker = StepSizeWorker(self.model, self.optimizer, BCEWithLogits(), **measuring)
        self.horizon = Horizon(self.worker)
        self.seen: list[Any] = []

    def advance(self, steps: range) -> None:
        for step in steps:
            dense, ids, label = self._batch(step)
            scheduled = 1e-3 * (1.0 + math.sin(step / 40) ** 2)
            rate = self.policy.learning_rate(step, scheduled)
            set_learning_rate(self.optimizer, rate)
            loss = binary_cross_entropy_with_logits(self.model(dense, ids), label)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            *b1, b1_label = self._batch(step + 1)
            measured = self.policy.wants(step) and self.worker.before_step(
                tuple(b1), b1_label, train_inputs=(dense, ids), train_targets=label, step=step
            )
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
            if measured:
                self.worker.after_step()
            self.horizon.carry_out(self.policy.horizon(step + 1), tuple(b1), b1_label, step=step + 1)
            estimates = self.worker.poll(step=step)
            for estimate in estimates:
                self.policy.observe(estimate)
            self.seen.append((rate, loss.item(), [vars(estimate) for estimate in estimates]))

    def answers(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits, of the averaged weights if there are."""
        with torch.no_grad(), self.average.applied() if self.average else nullcontext():
            return self.model(dense, ids)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "policy": self.policy.state_dict(),
            "horizon": {name: value.clone() for name, value in self.horizon.state_dict().items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.policy.load_state_dict(state["policy"])
        self.horizon.load_state_dict(state["horizon"])
