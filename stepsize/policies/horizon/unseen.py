"""What there may be left to gain that the steps of a horizon do not show."""

from __future__ import annotations

import math
from typing import Any

from stepsize.policies.horizon.series import HorizonSeries

UNSEEN = 0.01
"""What is taken to be left to gain unseen per unit of ln t, relative to the loss: while rattling costs less than that,
a lower rate is not worth it."""
UNSEEN_UNTRAINED = 0.1
"""So much more, where the loss is still what it was as the run began: there is nothing to lose."""
LEARNED, UNLEARNED = 0.1, 0.05
"""Shares of that loss of which either, once gained or lost, leaves nothing of `UNSEEN_UNTRAINED`: what can be lost had
been learned before."""
POOLED = 4
"""Series over which curvature and loss are averaged, exponentially: on a plateau those of one scatter over decades."""


class UnseenGain:
    """By how much α_K may lie below its target, since there may be more to gain than it shows.

    The rattling costs R = ¼·curvature of the loss L, and G per unit of ln t is gained, of which α_K shows a part. With
    another u·L unseen, the target is lower by u·(L/curvature)·ln(t/(t − K)). u is UNSEEN, and up to UNSEEN_UNTRAINED
    more while the loss is still the first. Derived in stepsize/HORIZON.md.
    """

    def __init__(self) -> None:
        self.first_loss: float | None = None
        """Mean loss at the weights that the run began with; None where nobody saw its first step."""
        self._curvature = 0.0  # relative to the loss, averaged over series
        self._loss = 0.0  # averaged over them, too
        self._lowest, self._highest = math.inf, -math.inf  # of that average, once it is of POOLED series
        self._series = 0  # at most POOLED

    def add(self, series: HorizonSeries) -> None:
        """Take in a series that counts; one whose loss is not above zero has gained the first; averages begin anew."""
        loss = series.mean_loss
        if loss <= 0:
            self._curvature, self._loss, self._series = 0.0, 0.0, 0
            self._lowest, self._highest = min(self._lowest, loss), max(self._highest, loss)
            return
        self._series = min(self._series + 1, POOLED)
        self._curvature += (series.mean_curvature / loss - self._curvature) / self._series
        self._loss += (loss - self._loss) / self._series
        if self._series == POOLED:
            self._lowest, self._highest = min(self._lowest, self._loss), max(self._highest, self._loss)

    @property
    def gained(self) -> float:
        """Share of the first loss that is gained, of the averaged one: a batch of a rare label may have next to none.

        0 where it is not known, or 0 is not the least.
        """
        return 1.0 - self._loss / self.first_loss if self.first_loss is not None and self._series else 0.0

    def of_horizon(self, *, done: int, since: int) -> float:
        """In units of α_K, for a horizon from step `since` to `done`."""
        if not self._series or since <= 0:
            return 0.0
        share = UNSEEN
        if self.first_loss is not None:
            gained = 1.0 - min(self._loss, self._lowest) / self.first_loss  # at any time
            lost = max(self._loss, self._highest) / self.first_loss - 1.0
            share += UNSEEN_UNTRAINED * max(0.0, 1.0 - max(gained / LEARNED, lost / UNLEARNED))
        return share / self._curvature * math.log(done / since)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        averages = [self._curvature, self._loss, self._series]
        extremes = None if self._highest < self._lowest else [self._lowest, self._highest]
        return {"first_loss": self.first_loss, "averages": averages, "extremes": extremes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self.first_loss = state["first_loss"]
        self._curvature, self._loss, self._series = state["averages"]
        self._lowest, self._highest = state["extremes"] or (math.inf, -math.inf)
