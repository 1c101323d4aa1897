"""One run: a problem trained by a method, evaluated along the way on rows that it never sees."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn

from stepsize.suite.methods import Average, Method, Pace
from stepsize.suite.problems.problem import Batches, Examples, Problem

EVALUATIONS = 16
ROWS_AT_ONCE = 2048
LOSSES_AT_ONCE = 16_384
STATISTICS_ROWS = 1024


def evaluation_steps(steps: int) -> list[int]:
    """Where a run is evaluated: before it begins and after every sixteenth of it, in whole steps."""
    return sorted({round(number * steps / EVALUATIONS) for number in range(EVALUATIONS + 1)})


def run(problem: Problem, method: Method, rate: float) -> dict[str, Any]:
    """Train `problem.model` and tell what came of it, as JSON values.

    `evaluations` has, for each, the step, the processor seconds of the training so far (evaluations left out), the
    loss on validation of each kind of weights that the method is judged by (None where it is not finite) and, where
    the lowest of them is the lowest of the run so far, those weights and their loss on test. `diverged`: the training
    loss, or the validation loss at the end, is not finite, or the method raised `error`; the run ends there. `rates`:
    the learning rate of the first parameter group in the step after each evaluation.
    """
    pace, average = method.begin(problem, rate)
    batches = problem.batches(held_out=getattr(pace, "held_out", 0.0))
    watch = _Watch(problem, method, pace, average)
    at = set(evaluation_steps(problem.steps))
    rates: list[list[float]] = []
    used, error = 0.0, None
    problem.model.train()
    if hasattr(pace.optimizer, "train"):
        pace.optimizer.train()  # pyright: ignore[reportAttributeAccessIssue]
    for step in range(problem.steps):
        if step in at:
            watch.evaluate(step, used)
        began = time.process_time()
        try:
            loss = _step(problem, pace, average, batches, step)
        except (RuntimeError, ArithmeticError, ValueError) as raised:
            loss, error = math.nan, f"{type(raised).__name__}: {raised}"
        used += time.process_time() - began
        if not math.isfinite(loss):
            break
        if step in at:
            rates.append([step, float(pace.optimizer.param_groups[0]["lr"])])
    else:
        step = problem.steps
        watch.evaluate(step, used)
    finite = step == problem.steps and None not in watch.evaluations[-1]["validation"].values()
    return {
        "evaluations": watch.evaluations,
        "diverged": not finite,
        "error": error,
        "steps": step,
        "rates": rates,
        "said": getattr(pace, "said", []),
        "outcomes": dict(getattr(pace, "outcomes", {})),
    }


def _step(problem: Problem, pace: Pace, average: Average | None, batches: Batches, step: int) -> float:
    """The loss of the batch before the step; the step is not made where it is not finite."""
    batch = batches.at(step)
    pace.optimizer.zero_grad()
    loss = problem.loss(problem.model(*batch.inputs), batch.targets)
    number = loss.item()
    if math.isfinite(number):
        loss.backward()
        pace.step(step, batches)
        if average is not None:
            average.step()
    return number


class _Watch:
    """The evaluations of a run."""

    def __init__(self, problem: Problem, method: Method, pace: Pace, average: Average | None) -> None:
        self.problem, self.method, self.pace, self.average = problem, method, pace, average
        self.evaluations: list[dict[str, Any]] = []
        self._best = math.inf

    def evaluate(self, step: int, seconds: float) -> None:
        """Evaluate now; training goes on afterwards as if nothing had been.

        An optimizer that keeps two sets of weights goes to the one and back, which rounds, as it does for its users.
        """
        found: dict[str, Any] = {"step": step, "seconds": seconds, "validation": {}, "weights": None, "test": None}
        models: dict[str, nn.Module] = {}
        optimizer = self.pace.optimizer
        switches = hasattr(optimizer, "train") and hasattr(optimizer, "eval")
        if switches:
            optimizer.eval()  # pyright: ignore[reportAttributeAccessIssue]
        for weights in self.method.weights:
            other = weights == "averaged" and self.average is not None
            models[weights] = self.average.averaged_model if other and self.average is not None else self.problem.model
            if other or switches:
                renew_statistics(models[weights], self.problem.train)
            loss = mean_loss(models[weights], self.problem.loss, self.problem.validation)
            found["validation"][weights] = loss if math.isfinite(loss) else None
        finite = {weights: loss for weights, loss in found["validation"].items() if loss is not None}
        if finite:
            weights = min(finite, key=lambda name: finite[name])
            if finite[weights] < self._best:
                self._best = finite[weights]
                test = mean_loss(models[weights], self.problem.loss, self.problem.test)
                found |= {"weights": weights, "test": test}
        if switches:
            optimizer.train()  # pyright: ignore[reportAttributeAccessIssue]
        self.problem.model.train()
        self.evaluations.append(found)


@torch.no_grad()
def mean_loss(model: nn.Module, loss: nn.Module, examples: Examples) -> float:
    """Mean loss over all rows, in evaluation mode; the model stays in it."""
    model.eval()
    targets_a_row = examples.targets[0].numel()
    at_once = max(1, min(ROWS_AT_ONCE, LOSSES_AT_ONCE // targets_a_row))
    total = 0.0
    for first in range(0, len(examples), at_once):
        part = examples.take(slice(first, first + at_once))
        total += loss(model(*part.inputs), part.targets).item() * len(part)
    return total / len(examples)


@torch.no_grad()
def renew_statistics(model: nn.Module, train: Examples) -> None:
    """Estimate what BatchNorm keeps anew, at the present weights, on the first 1,024 training rows."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean of all batches
    model.train()
    for first in range(0, min(STATISTICS_ROWS, len(train)), STATISTICS_ROWS // 8):
        model(*train.take(slice(first, first + STATISTICS_ROWS // 8)).inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
