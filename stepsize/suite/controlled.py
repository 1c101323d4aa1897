"""The task's optimizer, its rate led by what `stepsize` measures: the loop that any user would write."""

from __future__ import annotations

from collections import Counter

from torch.optim import Optimizer

from stepsize.policies import StepSizeConfig, make_policy, set_learning_rate
from stepsize.suite.problems.problem import Batches, Problem
from stepsize.worker import StepSizeWorker


class Controlled:
    """Measures and steps; the next batch, not trained on yet, is the probe."""

    def __init__(self, problem: Problem, optimizer: Optimizer, *, policy: str, guess: float) -> None:
        self.optimizer, self._guess = optimizer, guess
        config = StepSizeConfig(policy="auto")
        self._worker = StepSizeWorker(problem.model, optimizer, problem.loss)
        self._policy = make_policy(config, initial_rate=guess, total_steps=problem.steps)
        self.said: list[str] = []
        self.outcomes: Counter[str] = self._worker.counts

    def step(self, step: int, batches: Batches) -> None:
        """Set the rate that the estimates so far lead to, step, and measure if it is wanted."""
        set_learning_rate(self.optimizer, self._policy.learning_rate(step, self._guess))
        if not self._policy.wants(step):
            self.optimizer.step()
            return
        probe = batches.at(step + 1)
        with self._worker.around_step(probe.inputs, probe.targets, step=step):
            self.optimizer.step()
        for estimate in self._worker.poll(step=step):
            sentence = self._policy.observe(estimate)
            if sentence is not None:
                self.said.append(f"step {step}: {sentence}")
