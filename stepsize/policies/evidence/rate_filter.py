"""A drifting learning rate followed through noisy estimates, pooled as long as their error bars call for."""

from __future__ import annotations

import math
from typing import Any

from stepsize.policies.rates import Bounds
from stepsize.pooling import RateMoments

EDGE = 2.0
"""Standard errors about what many steps together say outside of which they leave no rate, however sure it was."""


class RateFilter:
    """Follows a drifting rate through noisy estimates, pooling as many as their error bars call for.

    The logarithm x of the best rate is taken to walk at random, by `drift` a step, and an estimate
    −s/c to be e^x plus noise of the variance V that its rows give: an extended Kalman filter. With P the
    variance of x and α = e^x, n steps after the last estimate

        P ← P + n·drift²;  gain = P·α / (P·α² + V);  x ← x + gain·(−s/c − α);  P ← P·V / (P·α² + V)

    Where P α² ≫ V one estimate replaces all before it; where V ≫ P α² about √V / (drift·α) of them are
    averaged, so small noisy batches pool long and large ones short. For the log loss at a calibrated model
    E[(σ − y)²] = σ(1 − σ), hence V ≈ 1/(R·c): the weights 1/V are those of a ratio of averages, and unlike
    an exponential average the filter is not held back by the huge curvatures of a run's first steps.
    No estimate moves the rate by more than `largest_factor`, nor below `smallest_factor` times what it was.
    """

    def __init__(self, *, drift: float, largest_factor: float, smallest_factor: float | None = None) -> None:
        self.drift, self.largest_factor = drift, largest_factor
        self.smallest_factor = 1 / largest_factor if smallest_factor is None else smallest_factor
        self._log_rate = 0.0
        self._variance = math.inf
        self._step = 0

    @property
    def started(self) -> bool:
        """Whether `start` has been called."""
        return math.isfinite(self._variance)

    @property
    def rate(self) -> float:
        """The rate as the estimates so far have it."""
        return math.exp(self._log_rate)

    @property
    def relative_error(self) -> float:
        """Standard error of the rate, relative to it."""
        return math.sqrt(self._variance)

    def start(self, rate: float, standard_error: float, *, step: int) -> None:
        """Begin at a positive `rate` known to `standard_error`."""
        self._log_rate, self._variance, self._step = math.log(rate), (standard_error / rate) ** 2, step

    def widen(self, relative_error: float) -> None:
        """The rate is known no better than to this, relative to it."""
        self._variance = max(self._variance, relative_error**2)

    def add(self, one: RateMoments, *, step: int, target: float = 1.0) -> None:
        """Take in the estimate of `step`, of a step that is right where its α is `target`."""
        self._variance += max(0, step - self._step) * self.drift**2
        self._step = max(step, self._step)
        noise, prior = one.variance_of(target * self.rate) / target**2, self._variance * self.rate**2
        if noise + prior <= 0:
            return
        gain = self._variance * self.rate / (prior + noise)
        moved = gain * (-one.slope / one.curvature / target - self.rate)
        self._variance *= noise / (prior + noise)
        self.scale(self._factor(moved))

    def correct(self, ratio: float, *, noise: float, drifted: float) -> None:
        """Take in that the best rate is `ratio` times the present one, known to the variance `noise` of that ratio.

        `drifted` is what the variance of the best rate's logarithm has grown by since the last estimate. Where what
        is left of the move lies more than two standard errors from `ratio`, the rate moves to that edge.
        """
        self._variance += drifted
        gain = self._variance / (self._variance + noise)
        self._variance *= noise / (self._variance + noise)
        reach, factor = EDGE * math.sqrt(noise), self._factor(gain * (ratio - 1))
        factor = min(max(factor, ratio - reach), ratio + reach)
        self.scale(min(max(factor, self.smallest_factor), self.largest_factor))

    def _factor(self, moved: float) -> float:
        low, high = math.log(self.smallest_factor), math.log(self.largest_factor)
        return math.exp(min(max(moved, low), high))

    def scale(self, factor: float) -> None:
        """Multiply the rate by `factor`, leaving its uncertainty as it is."""
        self._log_rate += math.log(factor)

    def keep_within(self, bounds: Bounds) -> None:
        """Move the rate to the nearest within `bounds`, leaving its uncertainty as it is."""
        if (bounded := bounds.clamp(self.rate)) != self.rate:
            self.scale(bounded / self.rate)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "log_rate": self._log_rate,
            "variance": self._variance if self.started else None,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._log_rate, self._step = float(state["log_rate"]), int(state["step"])
        self._variance = math.inf if state["variance"] is None else float(state["variance"])
