"""What there may be left to gain that the steps of a horizon do not show."""

from __future__ import annotations

import math

from stepsize.policies.horizon.series import HorizonSeries

ALWAYS = 0.01
"""What is taken to be left to gain unseen per unit of ln t, relative to the loss: while rattling costs less than that,
a lower rate is not worth it."""
NOTHING_LEARNED = 0.1
"""So much more, where the loss is what it was as training began: there is nothing to lose."""
LEARNED = 0.05
"""Share of that loss which, once gained, leaves nothing of `NOTHING_LEARNED`."""
POOLED = 4
"""Series over which curvature and loss are averaged: on a plateau those of one scatter over decades."""


class UnseenGain:
    """By how much α_K may lie below its target, since there may be more to gain than it shows.

    The rattling costs R = ¼·curvature of the loss L, and G per unit of ln t is gained, of which α_K shows a part. With
    another u·L unseen, the target is lower by u·(L/curvature)·ln(t/(t − K)). Derived in stepsize/HORIZON.md.
    """

    def __init__(self) -> None:
        self._price = 0.0  # curvature relative to the loss, averaged over series
        self._loss = 0.0  # averaged over them, too
        self._series = 0  # of which there are so many, at most POOLED

    def add(self, series: HorizonSeries) -> None:
        """Take in a series that counts; one whose loss is not above zero tells no relative gain."""
        loss = series.mean_loss
        if loss <= 0:
            self._series = 0
            return
        self._series = min(self._series + 1, POOLED)
        if self._series == 1:
            self._price = self._loss = 0.0
        self._price += (series.mean_curvature / loss - self._price) / self._series
        self._loss += (loss - self._loss) / self._series

    def of_horizon(self, *, done: int, since: int, first_loss: float | None) -> float:
        """In units of α_K, for a horizon from step `since` to `done`; `first_loss` is that of the untrained model."""
        if not self._series or since <= 0 or self._price <= 0:
            return 0.0
        share = ALWAYS
        if first_loss is not None:
            share += NOTHING_LEARNED * (1.0 - min(1.0, max(0.0, 1.0 - self._loss / first_loss) / LEARNED))
        return share / self._price * math.log(done / since)

    def state_dict(self) -> list[float]:
        """Everything as plain JSON values."""
        return [self._price, self._loss, self._series]

    def load_state_dict(self, state: list[float] | None) -> None:
        """Continue from `state_dict`'s values; from None, of a version that kept none, as at first."""
        self._price, self._loss, series = state or (0.0, 0.0, 0)
        self._series = int(series)
