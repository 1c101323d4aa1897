"""How each method moves the weights: optimizers, schedules, averages, and what its authors document as its defaults."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepsize.suite.controlled import Controlled
from stepsize.suite.problems.problem import Batches, OptimizerName, Problem
from stepsize.suite.problems.rows import EXTRA, SuiteError

WARM_UP = 0.05
AVERAGE = 0.99
WEIGHT_DECAY = 0.01

Weights = Literal["raw", "averaged"]


class Average(Protocol):
    """A second model that holds an average of the first one's weights."""

    @property
    def averaged_model(self) -> nn.Module:
        """The second model."""
        ...

    def step(self) -> None:
        """Take in the weights after a step."""
        ...


class ExponentialAverage:
    """a_t = a_{t−1} + max(1 − β, 1/t)·(θ_t − a_{t−1}) with β = 0.99: a plain mean of the first hundred steps."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.averaged_model = model, copy.deepcopy(model)
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Take in the weights after a step."""
        self._steps += 1
        weight = max(1 - AVERAGE, 1 / self._steps)
        for averaged, now in zip(self.averaged_model.parameters(), self.model.parameters(), strict=True):
            averaged.lerp_(now, weight)


class Pace(Protocol):
    """Moves the weights once their gradient is there."""

    optimizer: Optimizer

    def step(self, step: int, batches: Batches) -> None:
        """Step number `step`, from 0; `batches.at(step + 1)` has not been trained on yet."""
        ...


class Scheduled:
    """An optimizer at a rate times a factor of the step; without a factor the optimizer is left alone."""

    def __init__(self, optimizer: Optimizer, rate: float, factor: Callable[[int], float] | None) -> None:
        self.optimizer, self.rate, self.factor = optimizer, rate, factor

    def step(self, step: int, batches: Batches) -> None:
        """Set the rate and step."""
        if self.factor is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * self.factor(step)
        self.optimizer.step()


def warmed_up(steps: int) -> Callable[[int], float]:
    """Linearly up over the first twentieth, then 1."""
    rising = max(1, round(WARM_UP * steps))
    return lambda step: min(1.0, (step + 1) / rising)


def annealed(steps: int) -> Callable[[int], float]:
    """½(1 + cos(π·t/T)): from 1 to 0, without a warm-up."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))


def cosine(steps: int) -> Callable[[int], float]:
    """Linearly up over the first twentieth, then along a cosine to 0."""
    rise, rising = warmed_up(steps), max(1, round(WARM_UP * steps))
    return lambda step: rise(step) * 0.5 * (1 + math.cos(math.pi * max(0, step - rising) / max(1, steps - rising)))


def make_optimizer(name: OptimizerName, parameters: Iterable[Tensor], rate: float) -> Optimizer:
    """SGD, momentum 0.9, AdamW and NAdamW (weight decay 0.01, torch's default of AdamW) as torch has them."""
    match name:
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate)
        case "momentum":
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY)
        case "nadamw":
            return torch.optim.NAdam(parameters, lr=rate, weight_decay=WEIGHT_DECAY, decoupled_weight_decay=True)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train every task."""

    name: str
    title: str
    kind: Literal["tuned", "fixed", "measured", "peer"]
    """tuned: its rate is chosen from a grid. fixed: one rate for all tasks. measured: begins at first guesses.
    peer: an optimizer that its authors offer without a rate to tune."""
    note: str
    """What is done, for the page."""
    weights: tuple[Weights, ...] = ("raw",)
    """Which weights are evaluated; where both are, an evaluation is the better one on validation."""
    rates: tuple[float, ...] = ()
    """Rates or first guesses; those of a tuned method come from the grid."""
    package: str | None = None
    """The module it comes in."""
    distribution: str | None = None
    """What to install for it."""
    begin: Callable[[Problem, float], tuple[Pace, Average | None]]


def _tuned(factor: Callable[[int], Callable[[int], float]], *, averaged: bool, name: OptimizerName | None = None):
    def begin(problem: Problem, rate: float) -> tuple[Pace, Average | None]:
        optimizer = make_optimizer(name or problem.task.optimizer, problem.model.parameters(), rate)
        average = ExponentialAverage(problem.model) if averaged else None
        return Scheduled(optimizer, rate, factor(problem.steps)), average

    return begin


def _measured(policy: Literal["auto", "auto_single"]):
    def begin(problem: Problem, rate: float) -> tuple[Pace, Average | None]:
        average = ExponentialAverage(problem.model)  # before anything hooks into the model
        optimizer = make_optimizer(problem.task.optimizer, problem.model.parameters(), rate)
        return Controlled(problem, optimizer, policy=policy), average

    return begin


def _schedule_free(problem: Problem, rate: float) -> tuple[Pace, Average | None]:
    warm_up = max(1, round(WARM_UP * problem.steps))
    optimizer = package("schedulefree").AdamWScheduleFree(problem.model.parameters(), lr=rate, warmup_steps=warm_up)
    return Scheduled(optimizer, rate, None), None


def _prodigy(problem: Problem, rate: float) -> tuple[Pace, Average | None]:
    optimizer = package("prodigyopt").Prodigy(problem.model.parameters(), lr=rate)
    return Scheduled(optimizer, rate, annealed(problem.steps)), None


def _d_adaptation(problem: Problem, rate: float) -> tuple[Pace, Average | None]:
    optimizer = package("dadaptation").DAdaptAdam(problem.model.parameters(), lr=rate)
    return Scheduled(optimizer, rate, cosine(problem.steps)), None


def _dog(problem: Problem, rate: float) -> tuple[Pace, Average | None]:
    dog = package("dog")
    average = _PolynomialAverage(dog.PolynomialDecayAverager(problem.model))
    return Scheduled(dog.DoG(problem.model.parameters(), lr=rate), rate, None), average


class _PolynomialAverage:
    """DoG's own average."""

    def __init__(self, averager) -> None:
        self._averager = averager

    @property
    def averaged_model(self) -> nn.Module:
        return self._averager.averaged_model

    def step(self) -> None:
        self._averager.step()


def package(module: str) -> ModuleType:
    """The module of a peer.

    Raises: SuiteError where it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        [method] = [method for method in METHODS.values() if method.package == module]
        raise SuiteError(
            f"{method.name} needs {method.distribution}; pip install {EXTRA}, or give other --methods"
        ) from None


_EVERY = (
    Method(
        name="cosine",
        title="tuned cosine",
        kind="tuned",
        note="The task's optimizer; 5 % of the steps up, then a cosine to 0; last weights.",
        begin=_tuned(cosine, averaged=False),
    ),
    Method(
        name="constant+average",
        title="tuned constant, averaged",
        kind="tuned",
        note="The task's optimizer; 5 % of the steps up, then constant; weights averaged over some 100 steps.",
        weights=("averaged",),
        begin=_tuned(warmed_up, averaged=True),
    ),
    Method(
        name="fixed",
        title="NAdamW 1e-3, cosine",
        kind="fixed",
        note="NAdamW at 1e-3 in every task, 5 % of the steps up, then a cosine to 0.",
        rates=(1e-3,),
        begin=_tuned(cosine, averaged=False, name="nadamw"),
    ),
    Method(
        name="auto",
        title="auto",
        kind="measured",
        note="The task's optimizer, its rate from measurements over many steps, from first guesses 1e-6, 1e-2 and 1; "
        "the last weights or their average, whichever is better on validation.",
        weights=("raw", "averaged"),
        rates=(1e-6, 1e-2, 1.0),
        begin=_measured("auto"),
    ),
    Method(
        name="auto_single",
        title="auto_single",
        kind="measured",
        note="The task's optimizer, its rate from measurements of single steps, from a first guess of 1e-2; weights "
        "as with auto.",
        weights=("raw", "averaged"),
        rates=(1e-2,),
        begin=_measured("auto_single"),
    ),
    Method(
        name="schedule-free",
        title="Schedule-Free AdamW",
        kind="peer",
        note="Default rate 0.0025 and no schedule; with the warm-up that is recommended, 5 % of the steps.",
        rates=(0.0025,),
        package="schedulefree",
        distribution="schedulefree",
        begin=_schedule_free,
    ),
    Method(
        name="prodigy",
        title="Prodigy",
        kind="peer",
        note="Defaults (lr 1) and the recommended cosine annealing over all steps.",
        rates=(1.0,),
        package="prodigyopt",
        distribution="prodigyopt",
        begin=_prodigy,
    ),
    Method(
        name="d-adaptation",
        title="D-Adaptation (Adam)",
        kind="peer",
        note="Defaults (lr 1) and, as recommended, the schedule one would use anyway: that of the tuned cosine.",
        rates=(1.0,),
        package="dadaptation",
        distribution="dadaptation",
        begin=_d_adaptation,
    ),
    Method(
        name="dog",
        title="DoG",
        kind="peer",
        note="Defaults, and the polynomial average of the weights that its authors say it must be combined with.",
        weights=("averaged",),
        rates=(1.0,),
        package="dog",
        distribution="dog-optimizer",
        begin=_dog,
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _EVERY}
REFERENCE = "cosine"
"""The method that regret is measured against."""
