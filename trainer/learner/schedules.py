"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

WARMUP_START = 1e-10
"""Share of the peak at step 0: not 0, so that a step's length can be divided by its rate."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The `[schedule]` section: how the learning rate moves below its peak, `optimizer.lr`."""

    name: Literal["warmup_cosine", "warmup_linear", "warmup_constant", "cosine", "linear", "constant"] = "warmup_cosine"
    """Warm-up then cosine to 0 (AlgoPerf's), then linear to 0, or then constant; or each of them without warm-up."""
    warmup_fraction: float = 0.02
    """Share of the schedule's steps over which the rate rises linearly from nearly 0."""
    steps: int | None = None
    """Length in steps; None takes the budget's. The rate stays at its last value beyond it."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup_fraction <= 1.0:
            raise ValueError(f"schedule.warmup_fraction is {self.warmup_fraction}; give a share from 0 to 1")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"schedule.steps is {self.steps}; give at least 1, or leave it out for the budget's")

    @property
    def needs_length(self) -> bool:
        """Whether the rate depends on how many steps there are."""
        return self.name != "constant"


def scheduled_rate(config: ScheduleConfig, *, step: int, total_steps: int | None, peak: float) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    Warm-up over w = ⌊warmup_fraction · T⌋ steps, T being `config.steps` or else `total_steps`:
    peak · (10⁻¹⁰ + (1 − 10⁻¹⁰) · step / w), AlgoPerf's "from nearly 0". Then, with u = (step − w) / (T − w):
    peak · ½(1 + cos πu) or peak · (1 − u), both 0 from step T on.

    Raises: ValueError if the schedule needs a length and neither gives one.
    """
    if not config.needs_length:
        return peak
    length = config.steps or total_steps
    if length is None:
        raise ValueError(
            f"schedule {config.name!r} needs its length and the budget counts no steps; "
            "set schedule.name = 'constant', or schedule.steps, or budget.steps or budget.epochs"
        )
    warmup = int(config.warmup_fraction * length) if config.name.startswith("warmup_") else 0
    if step < warmup:
        return peak * (WARMUP_START + (1.0 - WARMUP_START) * step / warmup)
    if config.name.endswith("constant"):
        return peak
    done = min(1.0, (step - warmup) / max(1, length - warmup))
    return peak * (0.5 * (1.0 + math.cos(math.pi * done)) if config.name.endswith("cosine") else 1.0 - done)
