"""Every stateful part of the trainer through the resume harness: cut, restore, compare bit for bit."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import pytest
import torch
from torch.nn import functional

from stepsize.policies.rates import set_learning_rate
from tests.resume import assert_resumes
from trainer.learner.averaging import WeightAverage
from trainer.learner.config import PACKAGED, ModelConfig, OptimizerConfig, optimizer_names
from trainer.learner.model import build_model
from trainer.learner.optimizers import build_optimizer, evaluation_mode


class TrainedModel:
    """A small model that an optimizer trains at a changing rate, evaluated on the way, perhaps averaged."""

    def __init__(self, config: OptimizerConfig, average: Literal["ema", "polyak"] | None = None) -> None:
        sizes = ModelConfig(table_rows=32, embedding_dim=4, bottom=(6, 4), top=(8, 1))
        self.model = build_model(sizes, dense_features=3, sparse_features=4, seed=0)
        self.optimizer = build_optimizer(config, self.model)
        self.average = WeightAverage(self.model, average, decay=0.7) if average else None
        self.done = 0

    def advance(self) -> Any:
        generator = torch.Generator().manual_seed(self.done)
        dense, ids = torch.rand(16, 3, generator=generator), torch.randint(0, 32, (4, 16), generator=generator)
        label = (torch.rand(16, generator=generator) < 0.3).float()
        if self.done % 2:
            set_learning_rate(self.optimizer, 0.01 * self.done)
        self.optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(self.model(dense, ids), label)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        with evaluation_mode(self.optimizer):
            answers = self.model(dense, ids)
        if self.average is None:
            return loss, answers
        self.average.update()
        with self.average.applied():
            return loss, answers, self.model(dense, ids)

    def state(self) -> Any:
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }

    def restore(self, state: Any) -> None:
        self.done = state["done"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_resumes_exactly(name: str) -> None:
    if name in PACKAGED and importlib.util.find_spec(PACKAGED[name][0]) is None:
        pytest.skip(f"the package of {name} is not installed")
    assert_resumes(lambda: TrainedModel(OptimizerConfig(name=name)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("adam", {"amsgrad": True, "capturable": False, "foreach": True}),
        ("adamw", {"fused": True}),
        ("rmsprop", {"momentum": 0.9, "centered": True}),
        ("nadamw", {"capturable": True}),
    ],
)
def test_optimizers_with_options_resume_exactly(name: str, options: dict[str, Any]) -> None:
    assert_resumes(lambda: TrainedModel(OptimizerConfig(name=name, options=options)))


@pytest.mark.parametrize("kind", ["ema", "polyak"])
def test_averages_resume_exactly(kind: Literal["ema", "polyak"]) -> None:
    assert_resumes(lambda: TrainedModel(OptimizerConfig(), average=kind))


def test_the_harness_notices_a_part_that_forgets() -> None:
    class Forgetful(TrainedModel):
        def restore(self, state: Any) -> None:
            state["optimizer"]["state"][0]["step"] += 1
            super().restore(state)

    with pytest.raises(AssertionError, match="step 3, after the cut"):
        assert_resumes(lambda: Forgetful(OptimizerConfig()))
