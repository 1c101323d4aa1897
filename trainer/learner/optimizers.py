"""Optimizers by name: NAdamW, all of torch.optim, and learning-rate-free ones from their own packages."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.learner.config import OWN, PACKAGED, OptimizerConfig
from trainer.learner.factory import made
from trainer.learner.muon import MuonWithAdamW
from trainer.learner.nadamw import NAdamW
from trainer.learner.tables import LazyNAdamW, average_rounding, keep_by_rows, pays_by_rows, reason_for_dense

ALGOPERF_SCHEDULE_FREE = {
    "lr": 0.0025,
    "betas": (0.9, 0.9955159689799007),
    "weight_decay": 0.08121616522670176,
    "r": 0.75,
    "weight_lr_power": 2.0,
}
"""AlgoPerf's self-tuning winner; its warm-up is left to `schedule.name = "warmup_constant"`."""


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """The optimizer over all of `model`'s parameters, ready to step.

    Raises: ValueError for an unknown or unsuitable name, a setting that the optimizer does not take or
    refuses, or a package that is not installed.
    """
    if config.factory is not None:
        optimizer = _users_own(config, model)
        _switch(optimizer, "train")
        return optimizer
    make = _class_of(config.name)
    by_rows = _kept_by_rows(config, model)
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
    if by_rows:
        keep_by_rows(*by_rows)
        make = LazyNAdamW
    try:
        optimizer = make(model if make is MuonWithAdamW else list(model.parameters()), **arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(f"optimizer {config.name}: {error}") from None
    _switch(optimizer, "train")
    return optimizer


def _users_own(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """What `optimizer.factory` makes. Raises: ValueError if it is no optimizer of all weights of `model`."""
    factory, folder = config.factory, config.factory_folder
    assert factory
    assert folder
    given = {name: getattr(config, name) for name in ("lr", "betas", "eps", "weight_decay")}
    given = {name: value for name, value in given.items() if value is not None}
    parameters = list(model.parameters())
    optimizer = made("optimizer.factory", factory, folder, parameters, options=config.options, **given)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer.factory = {factory!r} returns a {type(optimizer).__name__}; return a torch.optim.Optimizer"
        )
    if {id(p) for group in optimizer.param_groups for p in group["params"]} != set(map(id, parameters)):
        raise ValueError(f"optimizer.factory = {factory!r} moves other parameters than it was given; move all of them")
    if "lr" not in optimizer.param_groups[0]:
        raise ValueError(f"optimizer.factory = {factory!r}: its groups have no 'lr'; give them one")
    return optimizer


def _kept_by_rows(config: OptimizerConfig, model: nn.Module) -> list[nn.Embedding]:
    """The model's embeddings whose weights are to be kept by rows.

    Raises: ValueError if `config` asks for it and it cannot be.
    """
    if config.table == "dense" or config.name.lower() != "nadamw":
        return []
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    against: list[str] = []
    if config.options.get("capturable"):
        against.append("a capturable step reads nothing back from the device")
    if config.table == "auto":
        tables = [table for table in tables if pays_by_rows(table, model)]
    against += [reason for table in tables if (reason := reason_for_dense(table)) is not None]
    if (
        config.average not in {None, "none"}
        and not against
        and any(average_rounding(t.weight.device) is None for t in tables)
    ):
        against.append("this build of torch rounds averages in a way of its own")
    if against and config.table == "lazy":
        raise ValueError(f'optimizer.table is "lazy", but {against[0]}; set it to "auto" or "dense"')
    return [] if against else tables


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


def _class_of(name: str) -> Callable[..., Optimizer]:
    """The class that a checked name stands for."""
    key = name.lower()
    if key in PACKAGED:
        module, attribute = PACKAGED[key]
        return getattr(importlib.import_module(module), attribute)
    if key in OWN:
        return {"nadamw": NAdamW, "muon": MuonWithAdamW}[key]
    classes = {attribute.lower(): value for attribute, value in vars(torch.optim).items()}
    return classes[key]
