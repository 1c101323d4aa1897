"""The verdict over a stretch of wall time: what bounds the speed of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

DATA_BOUND_SHARE = 0.1
"""From this share of the time on, waiting for rows bounds training."""
PAUSES = ("evaluation", "checkpoint")
"""Phases between steps."""
PAUSE_BOUND_SHARE, PAUSE_TOLD_SHARE = 0.5, 0.05
"""From these shares of the time on, pauses bound training, and a verdict tells of them."""
COMMUNICATION_BOUND_SHARE, COMMUNICATION_TOLD_SHARE = 0.5, 0.05
"""The same of what ranks say to one another."""


class BoundKind(StrEnum):
    """What limits the speed of training."""

    DATA = "data"
    """The step waits for rows: a faster pipeline makes training faster."""
    COMPUTE = "compute"
    """Rows are there when they are wanted: only a faster step makes training faster."""
    EVALUATION = "evaluation"
    """Most of the time goes to evaluations and checkpoints: fewer or shorter ones make training faster."""
    COMMUNICATION = "communication"
    """Most of the time goes to exchanges with other ranks, and to waiting for the slowest: a faster network, or ranks
    that are alike, make training faster."""
    UNKNOWN = "unknown"
    """No step has been finished yet."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The verdict over a stretch of wall time, pauses included.

    Shares of the wall time, in 0..1: `data_share` Σ data_wait, `pause_share` Σ evaluation + Σ checkpoint, with what
    ranks say to one another within them, `communication_share` what they say at all other times.
    The phase that is open counts, so that the verdict doesn't stand still while the run does.
    """

    kind: BoundKind
    data_share: float
    pause_share: float
    seconds: float
    """Wall time."""
    steps: int
    """Steps so far that it speaks of, or of the whole process."""
    communication_share: float = 0.0

    def __str__(self) -> str:
        if self.kind is BoundKind.UNKNOWN:
            return "no step finished yet"
        waiting = f"{100 * self.data_share:.0f} % of the time waiting for data"
        told = [waiting]
        if self.communication_share >= COMMUNICATION_TOLD_SHARE:
            told.append(f"{100 * self.communication_share:.0f} % communicating with other ranks")
        if self.pause_share >= PAUSE_TOLD_SHARE:
            told.append(f"{100 * self.pause_share:.0f} % evaluating and saving")
        return f"{self.kind}-bound: {', '.join(told)}"


def bound_of(
    phases: Mapping[str, float],
    *,
    steps: int,
    data_bound_share: float = DATA_BOUND_SHARE,
    communication_in_pauses: float = 0.0,
) -> Bound:
    """The verdict over `steps` steps and the pauses between them; `phases` sum to the wall time, in its unit.

    `communication_in_pauses` is the part of `communication` that passed in evaluations and checkpoints.
    """
    seconds = sum(phases.values())
    if seconds <= 0:
        return Bound(kind=BoundKind.UNKNOWN, data_share=0.0, pause_share=0.0, seconds=0.0, steps=steps)
    data_share = phases.get("data_wait", 0.0) / seconds
    pause_share = (sum(phases.get(name, 0.0) for name in PAUSES) + communication_in_pauses) / seconds
    communication_share = max(phases.get("communication", 0.0) - communication_in_pauses, 0.0) / seconds
    kind = BoundKind.COMMUNICATION if communication_share >= COMMUNICATION_BOUND_SHARE else BoundKind.COMPUTE
    if pause_share >= PAUSE_BOUND_SHARE:
        kind = BoundKind.EVALUATION
    if data_share >= data_bound_share:
        kind = BoundKind.DATA
    return Bound(
        kind=kind,
        data_share=data_share,
        pause_share=pause_share,
        communication_share=communication_share,
        seconds=seconds,
        steps=steps,
    )
