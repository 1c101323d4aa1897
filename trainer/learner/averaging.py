"""Averages of the weights along the run, to be evaluated in place of the weights themselves."""

# pyright: reportPrivateImportUsage=false
# (torch._foreach_lerp_ is what torch.optim.swa_utils averages with; its stub is marked private)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.learner.config import OptimizerConfig
from trainer.learner.tables import LazyWeight, reading

UPDATES = "#updates"
"""Key of the count in the state; no parameter can have this name."""


class WeightAverage:
    """A running average θ̄ of every parameter; costs one copy of the parameters and one pass over them a step.

    The k-th update, counted from 1: θ̄ ← θ̄ + w·(θ − θ̄), with w = 1/k for "polyak" (the mean of all iterates)
    and w = max(1 − decay, 1/k) for "ema", so that the first iterates weigh no more than later ones.
    Parameters that share memory are averaged once. Buffers are not averaged. The rows of a table kept by rows take
    their part in it when somebody looks at them.
    """

    def __init__(self, model: nn.Module, kind: Literal["ema", "polyak"], *, decay: float = 0.99) -> None:
        self._names, self._parameters = zip(*model.named_parameters(), strict=True)
        self._averages = [_copy_to_average(parameter) for parameter in self._parameters]
        self._floor = 1.0 - decay if kind == "ema" else 0.0
        self._updates = 0
        self._applied = False

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now, after an optimizer step."""
        assert not self._applied, "the weights are swapped out"
        self._updates += 1
        weight = max(self._floor, 1.0 / self._updates)
        tables = [parameter.table for parameter in self._parameters if isinstance(parameter, LazyWeight)]
        for table in tables:
            table.take_average(weight)
        others = [
            (average, parameter.detach())
            for parameter, average in zip(self._parameters, self._averages, strict=True)
            if not isinstance(parameter, LazyWeight)
        ]
        if others:
            averages, current = map(list, zip(*others, strict=True))
            torch._foreach_lerp_(averages, current, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model's parameters hold the averages; pointers are exchanged, nothing is copied.

        The averages of a model that was never updated are its weights as they were at construction.
        """
        self._exchange()
        self._applied = True
        try:
            yield
        finally:
            self._exchange()
            self._applied = False

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, and the number of updates; no copies."""
        assert not self._applied, "the weights are swapped out"
        return {UPDATES: torch.tensor(self._updates), **dict(zip(self._names, self._averages, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave for a model with the same parameters."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state[name])
        self._updates = int(state[UPDATES])

    def _exchange(self) -> None:
        for index, parameter in enumerate(self._parameters):
            parameter.data, self._averages[index] = self._averages[index], parameter.data


def _copy_to_average(parameter: Tensor) -> Tensor:
    copied = parameter.detach().clone()
    if not isinstance(parameter, LazyWeight):
        return copied
    parameter.table.follow_average(copied)
    return reading(parameter.table, copied)


def build_average(config: OptimizerConfig, model: nn.Module) -> WeightAverage | None:
    """The average that `optimizer.average` asks for, or None."""
    kind = config.average
    return None if kind is None or kind == "none" else WeightAverage(model, kind, decay=config.average_decay)
