"""Steps that were not made although they were measured, as the device alone knows at first."""

from __future__ import annotations

from torch import Tensor

from stepsize.measuring import Quantities

VOID = "void"
"""The flag's name among the quantities of a measurement."""


def void_step(flag: Tensor | None) -> Quantities:
    """The flag for the lane to bring to the host with the numbers; a copy, as the caller may use its memory again."""
    return {} if flag is None else {VOID: flag.detach().double().reshape(1).clone()}


def is_void(numbers: dict[str, list[float]]) -> bool:
    """Whether the step was not made, by the quantities on the host."""
    return numbers.get(VOID, [0.0])[0] != 0.0
