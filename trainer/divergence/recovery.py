"""What rollbacks have made of a run: how many there were, and what they left of its rate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

HALVINGS = (1, 6, 12)
"""Times that the rate is halved by a rollback, and by the second and every further one to the same step: a run that
diverges again before it got anywhere is far off, and a handful of rollbacks must reach from any rate to a sane one."""


@dataclass(kw_only=True)
class Recovery:
    """Part of a run's state: saved with every checkpoint, the one that a rollback itself writes included."""

    rollbacks: int = 0
    """So far."""
    rate_factor: float = 1.0
    """What every rate is multiplied by, the schedule's as well as one that a policy found."""
    step: int | None = None
    """What the latest rollback went back to."""
    in_place: int = 0
    """Rollbacks in a row to that step."""
    sound: bool = True
    """Whether its weights are of before the divergence: they are then gone back to again, whatever comes after them."""
    held_until: int = 0
    """Before this step a policy that sets the rate hears of no estimate: it would find the steps, now shorter, too
    short, and be back at the rate that diverged before the run is past where that was."""
    rows_skipped: int = 0
    """Rows of the stream that were trained on in vain, and are left out."""

    def roll_back(self, to_step: int, *, from_step: int, rows: int, sound: bool = True) -> None:
        """Count a rollback to `to_step` that leaves `rows` out, and lower the rate: by 2¹, then 2⁶, then 2¹² in place.

        It begins at 2¹ again once a later step is gone back to. A policy is held until the run is as far beyond
        `from_step`, where it diverged, as that was beyond `to_step`.
        """
        self.held_until = from_step + (from_step - to_step)
        self.in_place = self.in_place + 1 if to_step == self.step else 1
        self.rollbacks, self.step, self.rows_skipped = self.rollbacks + 1, to_step, self.rows_skipped + rows
        self.sound = sound
        self.rate_factor *= 0.5 ** HALVINGS[min(self.in_place, len(HALVINGS)) - 1]

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state_dict`'s values; None, of a run older than them, begins anew."""
        vars(self).update(asdict(Recovery()) | (state or {}))
