"""The task's optimizer, its rate led by what `stepsize` measures: the loop that any user would write."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from torch.optim import Optimizer

from stepsize.policies import StepSizeConfig
from stepsize.suite.problems import Batches, Problem
from stepsize.worker import RateController

HELD_OUT = 0.0
"""Share of the training rows that is kept for probing alone, in tasks that read their rows more than once."""


class Controlled:
    """Steps, and measures what the policy wants on rows that no step since has seen.

    These are the next batch's, or such as are kept back for it (`held_out` is their share).
    """

    def __init__(self, problem: Problem, optimizer: Optimizer, *, policy: Literal["auto", "auto_single"]) -> None:
        """The first guess is the optimizer's rate."""
        self.optimizer = optimizer
        self.held_out = HELD_OUT if problem.task.epochs > 1 else 0.0
        config = StepSizeConfig(policy=policy)
        self._controller = RateController(problem.model, optimizer, problem.loss, config, total_steps=problem.steps)
        self.said: list[str] = []

    @property
    def outcomes(self) -> Counter[str]:
        """How many estimates came out how."""
        return self._controller.worker.counts

    def step(self, step: int, batches: Batches) -> None:
        """Set the rate that the estimates so far lead to, step, and measure if it is wanted."""
        probe = batches.held_out_batch() if self.held_out else batches.at(step + 1)
        with self._controller.around_step(probe.inputs, probe.targets, step=step):
            self.optimizer.step()
        self.said += [f"step {step}: {sentence}" for sentence in self._controller.said]
