"""Learning rates: their bounds, how they are written, and setting an optimizer's from outside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

SAID_FACTOR = 1.5
"""A rate that moved by less than this since it was last reported is not reported again."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The lowest and the highest rate a policy may set."""

    low: float = 1e-8
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < float("inf"):
            raise ValueError(f"bounds: {self.low} and {self.high} bound nothing; give 0 < low < high")

    def clamp(self, rate: float) -> float:
        """The nearest rate within the bounds."""
        return min(max(rate, self.low), self.high)


@dataclass(frozen=True)
class CoolDown:
    """The last steps of a budget, over which a rate falls linearly to zero."""

    first: int
    end: int
    """The first step after the budget."""

    def begun(self, step: int) -> bool:
        """Whether `step` is one of them, or later."""
        return step >= self.first

    def left(self, step: int) -> float:
        """What is left of the rate at `step`: 1 before, then falling to 0 at the end."""
        return min(1.0, max(0.0, (self.end - step) / (self.end - self.first)))


NO_COOL_DOWN = CoolDown(1 << 62, (1 << 62) + 1)
"""Of a run whose rate does not fall at its end."""


class HasGroups(Protocol):
    """A torch optimizer, or what has parameter groups like one."""

    param_groups: list[dict[str, Any]]


def set_learning_rate(optimizer: HasGroups, rate: float) -> None:
    """Give the first parameter group `rate` and each other group its share, in place if the rate is a tensor.

    The shares are those of the rates that the groups began with, which are noted as `initial_lr`, where torch's
    schedules keep them too; so a rate of zero on the way loses nothing. With a first rate of zero all get `rate`.
    """
    for group in optimizer.param_groups:
        # a float from then on: to read a tensor on a device again would wait for the device at every step
        group["initial_lr"] = float(group.get("initial_lr", group["lr"]))
    first = optimizer.param_groups[0]["initial_lr"]
    for group in optimizer.param_groups:
        share = group["initial_lr"] / first if first else 1.0
        if hasattr(group["lr"], "fill_"):
            group["lr"].fill_(share * rate)
        else:
            group["lr"] = share * rate


def moved(before: float | None, after: float) -> bool:
    """Whether a rate is worth reporting again."""
    return before is None or not 1 / SAID_FACTOR < after / before < SAID_FACTOR


def format_rate(rate: float | None) -> str:
    """A rate as people write it, 1.20e-4; "unset" for None."""
    if rate is None:
        return "unset"
    if not math.isfinite(rate):
        return str(rate)
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"
