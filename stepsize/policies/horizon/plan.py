"""What a policy wants measured over many steps: which snapshots to keep, and since which to measure."""

from __future__ import annotations

from dataclasses import dataclass

from stepsize.policies.rates import NO_COOL_DOWN


@dataclass(frozen=True, kw_only=True)
class HorizonPlan:
    """What to do once `done` steps have been made, in this order."""

    since: int | None = None
    """Measure the displacement from the snapshot of so many steps to now; None: nothing."""
    keep: bool = False
    """Keep a snapshot of now."""
    forget: tuple[int, ...] = ()
    """Let go of the snapshots of these steps."""


NO_HORIZON = HorizonPlan()
"""Nothing to do."""


class SingleSteps:
    """A policy that looks at single steps alone."""

    sets_rate = True
    cooldown = NO_COOL_DOWN

    def horizon(self, done: int) -> HorizonPlan:
        """Nothing."""
        return NO_HORIZON
