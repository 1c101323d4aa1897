"""The batches of one step as they are measured: B1 cut to its probe rows, and B2 where a pass over it is asked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from stepsize.errors import MeasurementError
from stepsize.measuring import Batch, Generators, LastTrainingForward
from stepsize.options import MeasuringOptions

TakeRows = Callable[[tuple[Any, ...], Tensor, int], tuple[tuple[Any, ...], Tensor]]
"""`(inputs, targets, rows)` to the inputs and targets of the first `rows` rows."""


@dataclass(frozen=True, kw_only=True)
class ProbeBatches:
    """Makes B1, and B2 if `options` need it, of what the caller gives around a step."""

    options: MeasuringOptions
    take_rows: TakeRows
    device: torch.device
    last_forward: LastTrainingForward
    shared: bool = False
    """Whether each process has a share of B1, which may have no rows."""

    def __call__(
        self,
        inputs: Tensor | tuple[Any, ...],
        targets: Tensor,
        train_inputs: Tensor | tuple[Any, ...] | None,
        train_targets: Tensor | None,
        rows: int | None = None,
    ) -> tuple[Batch, ...]:
        """B1, under the dropout mask that the next forward pass will draw, and B2 under the one it was trained with.

        Of B1 the first `rows`, by default those of the `probe_fraction`.

        Raises: MeasurementError where B1 has no rows, or B2 is needed and not given.
        """
        if targets is None or not (len(targets) or self.shared):
            raise MeasurementError(
                "before_step: B1 has no rows; give targets of at least one, zeros where the loss needs none"
            )
        now = Generators.capture(self.device)
        rows = math.ceil(self.options.probe_fraction * len(targets)) if rows is None else rows
        b1_inputs, b1_targets = _as_tuple(inputs), targets
        if rows < len(targets):
            b1_inputs, b1_targets = self.take_rows(b1_inputs, targets, rows)
        b1 = Batch(inputs=b1_inputs, targets=b1_targets, generators=now)
        if train_inputs is None or train_targets is None:
            if self.options.needs_b2:
                raise MeasurementError(
                    "biased and hybrid estimates need B2; give train_inputs and train_targets to before_step"
                )
            return (b1,)
        if not self.options.needs_b2 and self.options.diagnostics == "none":
            return (b1,)
        trained_with = self.last_forward.generators or now
        return b1, Batch(inputs=_as_tuple(train_inputs), targets=train_targets, generators=trained_with)


def first_rows(inputs: tuple[Any, ...], targets: Tensor, rows: int) -> tuple[tuple[Any, ...], Tensor]:
    """The first `rows` rows: each tensor cut along its first dimension of the targets' length, others left whole.

    Tensors in nested tuples, lists and mappings (also a tokenizer's BatchEncoding) count too.

    Raises: MeasurementError where no tensor has as many rows as the targets, so that nothing could be cut.
    """
    length, found = len(targets), False

    def cut(value: Any) -> Any:
        nonlocal found
        if isinstance(value, MutableMapping):
            fewer = copy.copy(value)
            for key, item in value.items():
                fewer[key] = tree_map(cut, item)
            return fewer
        if not isinstance(value, Tensor) or length not in value.shape:
            return value
        found = True
        return value.narrow(value.shape.index(length), 0, rows)

    fewer = tree_map(cut, inputs)
    if not found:
        raise MeasurementError(
            f"probe_fraction: no tensor in the inputs ({', '.join(type(value).__name__ for value in inputs)}) has the "
            f"targets' {length} rows, so none can be cut; give take_rows=function(inputs, targets, rows)"
        )
    return fewer, targets[:rows]


def _as_tuple(inputs: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
