"""The learning rates of one step, one a parameter group, without waiting for those that live on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepsize.measuring import Quantities, Steps

RATES = "rates"
"""The rates' name among the quantities of a measurement."""


@dataclass(frozen=True)
class GroupRates:
    """One rate a group: floats as they are, and copies of tensors, whose values come with the measured numbers.

    `float` of a tensor on a CUDA device would wait for everything that its stream has been given.
    """

    values: tuple[float | Tensor, ...]

    @classmethod
    def now(cls, optimizers: Sequence[Steps]) -> GroupRates:
        """The rates that the optimizers have at present."""
        rates = (group["lr"] for one in optimizers for group in one.param_groups)
        return cls(tuple(rate.detach().clone() if isinstance(rate, Tensor) else float(rate) for rate in rates))

    @property
    def tensors(self) -> list[Tensor]:
        """Those that must be read where they live."""
        return [value for value in self.values if isinstance(value, Tensor)]

    def quantities(self) -> Quantities:
        """The tensors' values under `RATES`, for the lane to bring to the host; nothing where all are floats."""
        found = [tensor.double().reshape(()) for tensor in self.tensors]
        return {RATES: torch.stack(found)} if found else {}

    def read(self, numbers: dict[str, list[float]]) -> list[float]:
        """All of them as floats, `numbers` being the quantities on the host."""
        arrived = iter(numbers.get(RATES, ()))
        return [next(arrived) if isinstance(value, Tensor) else value for value in self.values]
