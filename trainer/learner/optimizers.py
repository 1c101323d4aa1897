"""Optimizers by name: NAdamW, all of torch.optim, and learning-rate-free ones from their own packages."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.learner.model import load_preset
from trainer.learner.muon import MuonWithAdamW
from trainer.learner.nadamw import NAdamW

OWN = {"nadamw": NAdamW, "muon": MuonWithAdamW}

PACKAGED = {
    "schedulefree_adamw": ("schedulefree", "AdamWScheduleFree"),
    "schedulefree_radam": ("schedulefree", "RAdamScheduleFree"),
    "schedulefree_sgd": ("schedulefree", "SGDScheduleFree"),
    "prodigy": ("prodigyopt", "Prodigy"),
    "dadapt_adagrad": ("dadaptation", "DAdaptAdaGrad"),
    "dadapt_adam": ("dadaptation", "DAdaptAdam"),
    "dadapt_adan": ("dadaptation", "DAdaptAdan"),
    "dadapt_lion": ("dadaptation", "DAdaptLion"),
    "dadapt_sgd": ("dadaptation", "DAdaptSGD"),
    "dog": ("dog", "DoG"),
    "ldog": ("dog", "LDoG"),
}
"""Our name → module and class, of what the extra `optimizers` installs."""

REFUSED = {
    "lbfgs": "evaluates the loss several times a step through a closure, which the training step does not give",
    "sparseadam": "needs sparse gradients, and the table's are dense",
}

ALGOPERF_SCHEDULE_FREE = {
    "lr": 0.0025,
    "betas": (0.9, 0.9955159689799007),
    "weight_decay": 0.08121616522670176,
    "r": 0.75,
    "weight_lr_power": 2.0,
}
"""AlgoPerf's self-tuning winner; its warm-up is left to `schedule.name = "warmup_constant"`."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The `[optimizer]` section. What is None comes from the preset (for its own optimizer) or the optimizer itself."""

    name: str = "nadamw"
    """nadamw, any class of torch.optim in lower case, or one of the extra `optimizers`, e.g. schedulefree_adamw."""
    lr: float | None = None
    """Learning rate: the peak of the schedule."""
    betas: tuple[float, float] | None = None
    """Decay rates of the first and second moment, where the optimizer has them."""
    eps: float | None = None
    """Added to the denominator, where the optimizer has one."""
    weight_decay: float | None = None
    """Decay λ; decoupled from the gradient in nadamw and adamw."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any further keyword argument of the optimizer, e.g. momentum = 0.9."""
    average: Literal["none", "ema", "polyak"] = "none"
    """What is evaluated: the weights themselves, their exponential moving average, or their mean since the start."""
    average_decay: float = 0.99
    """Share of the old average that survives one step of "ema"."""

    def __post_init__(self) -> None:
        if self.lr is not None and not 0.0 <= self.lr < float("inf"):
            raise ValueError(f"optimizer.lr is {self.lr}; give a finite number from 0")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"optimizer.average_decay is {self.average_decay}; give a number from 0 to below 1")
        _class_of(self.name)

    def resolved(self, preset: str) -> OptimizerConfig:
        """The same with every None that `preset` has a value for filled, if the preset is for this optimizer.

        Raises: ValueError for an unknown preset.
        """
        values = load_preset(preset)["optimizer"]
        if values["name"] != self.name.lower():
            return self
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})


def optimizer_names() -> list[str]:
    """Every name that `optimizer.name` accepts, whether its package is installed or not."""
    return sorted((set(OWN) | set(_torch_classes()) | set(PACKAGED)) - set(REFUSED))


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """The optimizer over all of `model`'s parameters, ready to step.

    Raises: ValueError for an unknown or unsuitable name, a setting that the optimizer does not take or
    refuses, or a package that is not installed.
    """
    make = _class_of(config.name)
    accepted = set(inspect.signature(make).parameters) - {"params", "model"}
    arguments = dict(ALGOPERF_SCHEDULE_FREE) if config.name.lower() == "schedulefree_adamw" else {}
    for name in ("lr", "betas", "eps", "weight_decay"):
        value = getattr(config, name)
        if value is not None and name not in accepted:
            raise ValueError(f"optimizer.{name} is set, but {config.name} takes no {name}; leave it out")
        if value is not None:
            arguments[name] = value
    for name, value in config.options.items():
        if name not in accepted:
            raise ValueError(
                f"optimizer.options.{name}: {config.name} has no such setting; it has {', '.join(sorted(accepted))}"
            )
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        optimizer = make(model if make is MuonWithAdamW else list(model.parameters()), **arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(f"optimizer {config.name}: {error}") from None
    _switch(optimizer, "train")
    return optimizer


def learning_rate(optimizer: Optimizer) -> float:
    """The rate of the first parameter group."""
    return float(optimizer.param_groups[0]["lr"])


@contextmanager
def evaluation_mode(optimizer: Optimizer) -> Iterator[None]:
    """Within it the weights are those to evaluate (schedule-free optimizers train at other points than they answer).

    Afterwards they are bit for bit what they were, so that evaluating changes nothing; it takes a copy of them.
    """
    if not callable(getattr(optimizer, "eval", None)):
        yield
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = [weight.detach().clone() for weight in weights]
    _switch(optimizer, "eval")
    try:
        yield
    finally:
        _switch(optimizer, "train")
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)  # the optimizer's own way back rounds


def _switch(optimizer: Optimizer, mode: Literal["train", "eval"]) -> None:
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def _torch_classes() -> dict[str, Callable[..., Optimizer]]:
    classes = vars(torch.optim).values()
    return {
        value.__name__.lower(): value
        for value in classes
        if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
    }


def _class_of(name: str) -> Callable[..., Optimizer]:
    key = name.lower()
    if key in REFUSED:
        raise ValueError(f"optimizer.name is {name!r}, which {REFUSED[key]}; choose another, e.g. nadamw")
    if key in OWN:
        return OWN[key]
    if key in PACKAGED:
        module, attribute = PACKAGED[key]
        try:
            return getattr(importlib.import_module(module), attribute)
        except ImportError:
            raise ValueError(
                f"optimizer.name is {name!r}, but the package {module!r} is not installed; "
                "install the extra: pip install 'alphastream[optimizers]'"
            ) from None
    classes = _torch_classes()
    if key not in classes:
        raise ValueError(f"optimizer.name is {name!r}; known are {', '.join(optimizer_names())}")
    return classes[key]
