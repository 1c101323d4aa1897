"""The [divergence] section of a configuration; importing it costs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig:
    """The `[divergence]` section: what counts as divergence, and how often a run goes back by itself.

    A step whose loss or gradient is not finite is withheld: it counts, and moves nothing. More of them than is allowed
    here, or losses far above what they were, are divergence. The run then goes back to its last good checkpoint at half
    the rate and leaves out the rows since.
    """

    nonfinite_steps: int = 5
    """So many withheld steps in a row are divergence."""
    nonfinite_share: float = 0.2
    """Withheld steps of more than this share of the latest 100 are divergence."""
    loss_factor: float = 3.0
    """A loss is far too high above so many times the lowest that the run has held, or ln 2, what a guess costs, if that
    is more; 0: no loss is."""
    loss_steps: int = 50
    """Three quarters of so many losses that are far too high are divergence."""
    rollbacks: int = 3
    """How often a run goes back before it ends with code 3; 0: it ends at once."""

    def __post_init__(self) -> None:
        for name in ("nonfinite_steps", "loss_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"divergence.{name} is {getattr(self, name)}; give at least 1 step")
        if not 0.0 < self.nonfinite_share <= 1.0:
            raise ValueError(f"divergence.nonfinite_share is {self.nonfinite_share}; give a share above 0, up to 1")
        if self.loss_factor != 0.0 and not 1.0 < self.loss_factor < math.inf:
            raise ValueError(f"divergence.loss_factor is {self.loss_factor}; give a number above 1, or 0 for no limit")
        if self.rollbacks < 0:
            raise ValueError(f"divergence.rollbacks is {self.rollbacks}; give 0 or more")
