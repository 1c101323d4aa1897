"""When a run has diverged, by its losses alone: steps withheld too often, or a loss that has gone and stays away."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from trainer.divergence.config import DivergenceConfig

WINDOW = 100
"""Latest steps over which the share of withheld ones is taken."""
GUESS_LOSS = math.log(2.0)
"""Cross-entropy in nats of answering one half: what knowing nothing costs, at any label rate."""
HIGH_SHARE = 0.75
"""Losses of a run at far too high a rate leap about; now and then one of them is a good one."""
LAST_SHARE = 5
"""At the end of the budget, where no more losses come, a fifth of `loss_steps` is enough."""
SUSPICIOUS_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A run that no longer learns."""

    reason: str
    """In words, with its numbers."""
    since: int
    """The first step that shows it: weights from there on are not to be gone back to."""


class DivergenceWatch:
    """Judges a run by the loss of every step, and whether the step was withheld; a function of these alone.

    Withheld steps: `nonfinite_steps` in a row, or more than `nonfinite_share` of the latest 100 (once there are so
    many). Losses: three quarters of the latest `loss_steps`, withheld ones among them, above `loss_factor` ·
    max(ln 2 · w, r), w the `largest_weight` of a row in the loss. r is the lowest mean of `loss_steps` losses not so
    high that the run has had, and until it has one its first loss, of the weights that no step has touched. So a run
    that begins high and comes down is not judged by where it began, spikes are no divergence however high, and no label
    rate makes a healthy loss look bad.
    """

    def __init__(self, config: DivergenceConfig, *, largest_weight: float = 1.0) -> None:
        self.config, self.largest_weight = config, largest_weight
        self._recent: deque[tuple[int, bool]] = deque(maxlen=WINDOW)
        self._withheld: list[int] = []  # steps, in a row up to now
        self._high: deque[tuple[int, bool]] = deque(maxlen=config.loss_steps)
        self._reference: float | None = None
        self._sum, self._count = 0.0, 0

    def add(self, step: int, loss: float, *, withheld: bool) -> None:
        """Take in one step."""
        self._recent.append((step, withheld))
        self._withheld = _row(self._withheld, step, withheld)
        high = withheld or self._is_high(loss)
        self._high.append((step, high))
        if not withheld and not high and math.isfinite(loss):
            self._take_reference(loss)

    def _is_high(self, loss: float) -> bool:
        bar = self.bar
        return bar is not None and not loss <= bar

    @property
    def bar(self) -> float | None:
        """What a loss must not lie above for long; None before the first, or if none is too high."""
        if not self.config.loss_factor or self._reference is None:
            return None
        return self.config.loss_factor * max(GUESS_LOSS * self.largest_weight, self._reference)

    def _take_reference(self, loss: float) -> None:
        if self._reference is None:
            self._reference = loss
        self._sum, self._count = self._sum + loss, self._count + 1
        if self._count == self.config.loss_steps:
            self._reference = min(self._reference, self._sum / self._count)
            self._sum, self._count = 0.0, 0

    @property
    def suspicious(self) -> bool:
        """Whether the latest step was withheld, or its loss or a tenth of the latest high: no place to go back to."""
        high = self._high_steps()
        latest = bool(self._high) and self._high[-1][1]
        return bool(self._withheld) or latest or len(high) > SUSPICIOUS_SHARE * self.config.loss_steps

    def _high_steps(self, *, latest: int | None = None) -> list[int]:
        """Of all that are remembered, or the `latest`."""
        return [step for step, high in list(self._high)[-latest if latest else None :] if high]

    def verdict(self, *, final: bool) -> Divergence | None:
        """Whether the run has diverged; `final` where no step is left that could tell otherwise."""
        config = self.config
        row = len(self._withheld)
        if row >= (1 if final else config.nonfinite_steps):
            text = "the last step was" if row == 1 else f"the last {row} steps were"
            return Divergence(reason=f"{text} not finite", since=self._withheld[0])
        among = [step for step, withheld in self._recent if withheld]
        if len(self._recent) == WINDOW and len(among) > config.nonfinite_share * WINDOW:
            return Divergence(reason=f"{len(among)} of the last {WINDOW} steps were not finite", since=among[0])
        if config.loss_factor:
            several = -(-config.loss_steps // LAST_SHARE) if final else config.loss_steps
            high = self._high_steps(latest=several)
            if len(high) >= HIGH_SHARE * several and (bar := self.bar) is not None:
                first = self._high_steps()[0]
                text = f"the loss of {len(high)} of the last {min(several, len(self._high))} steps was above {bar:.3g}"
                return Divergence(reason=text, since=first)
        return None

    def calm(self) -> None:
        """Forget what was suspicious: the weights are others now."""
        self._recent.clear()
        self._withheld = []
        self._high.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "recent": [[step, withheld] for step, withheld in self._recent],
            "withheld": list(self._withheld),
            "high": [[step, high] for step, high in self._high],
            "reference": self._reference,
            "sum": self._sum,
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state_dict`'s values; None, of a run older than them, begins anew."""
        self.__init__(self.config, largest_weight=self.largest_weight)
        if state is not None:
            self._recent.extend((step, withheld) for step, withheld in state["recent"])
            self._withheld = list(state["withheld"])
            self._high.extend((step, high) for step, high in state["high"])
            self._reference, self._sum, self._count = state["reference"], state["sum"], state["count"]


def _row(before: list[int], step: int, goes_on: bool) -> list[int]:
    """The steps of the row that `step` goes on with, or ends."""
    return [*before, step] if goes_on else []
