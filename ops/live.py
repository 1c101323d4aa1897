"""What the live page shows: the state of a run in bounded memory."""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ops.step_clock import StepClock

POINTS = 360
"""At most this many points of a curve are kept; beyond it, neighbors are averaged."""
ALPHAS = 2_880
BINS = 36
BIN_ESTIMATES = 12
LEAST_ESTIMATES = 10
"""Fewer estimates of α* than this scatter too much to show a number."""
MESSAGES = 8


@dataclass(frozen=True, kw_only=True)
class AlphaFactor:
    """What α* says in one number: how many times as long the steps should have been, pooled over many estimates."""

    estimates: int
    """How many went into it."""
    factor: float | None
    """None below `LEAST_ESTIMATES`, or if their curvature sums to nothing."""
    standard_error: float | None
    """Of `factor`."""

    @property
    def margin(self) -> float | None:
        """Half the width of the 95 % interval."""
        return None if self.standard_error is None else 1.96 * self.standard_error


class Curve:
    """A curve over steps of any length in bounded memory: each point is the mean of `stride` steps."""

    def __init__(self, points: int = POINTS) -> None:
        self._limit = points
        self._stride = 1
        self._steps: list[int] = []
        self._values: list[float] = []
        self._pending: list[float] = []

    def add(self, step: int, value: float) -> None:
        self._pending.append(value)
        if len(self._pending) < self._stride:
            return
        self._steps.append(step)
        self._values.append(statistics.fmean(self._pending))
        self._pending.clear()
        if len(self._values) == self._limit:
            self._steps = self._steps[1::2]
            self._values = [(a + b) / 2 for a, b in zip(self._values[::2], self._values[1::2], strict=True)]
            self._stride *= 2

    def points(self) -> list[tuple[int, float | None]]:
        """(step, mean value) of every point, None if it is not finite (JSON has no NaN)."""
        return [(step, finite(value)) for step, value in zip(self._steps, self._values, strict=True)]


class LiveStatus:
    """Collects what a run reports and hands out `snapshot` as plain JSON values; safe to read from any thread.

    `total_steps` and `budget_seconds` say when the run will end, so far as that is known.
    """

    def __init__(
        self,
        clock: StepClock,
        *,
        run: str,
        total_steps: int | None = None,
        budget_seconds: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._started = monotonic()
        self._total_steps = total_steps
        self._budget_seconds = budget_seconds
        self._lock = threading.Lock()
        self._now: dict[str, Any] = {"run": run, "state": "starting", "step": 0, "epoch": 0, "rows": 0}
        self._training_seconds = 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=200)
        self._loss = Curve()
        self._learning_rate = Curve()
        self._alphas: list[tuple[int, float, float, float]] = []
        self._alpha_stride = 1
        self._estimates = 0
        self._outcomes: dict[str, int] = {}
        self._relative: deque[float] = deque(maxlen=200)
        self._factor = AlphaFactor(estimates=0, factor=None, standard_error=None)
        self._steps_seen = 0
        self._evaluations: dict[str, dict[str, Any]] = {}
        self._messages: deque[dict[str, Any]] = deque(maxlen=MESSAGES)

    def state(self, text: str) -> None:
        """What the run is doing: starting, training, evaluating, saving, stopping, finished ..."""
        with self._lock:
            self._now["state"] = text

    def resume(self, *, step: int, epoch: int, rows: int, training_seconds: float) -> None:
        """Go on from where an earlier process stopped, after `step` steps over `rows` rows."""
        with self._lock:
            self._now |= {"step": step, "epoch": epoch, "rows": rows}
            self._training_seconds = training_seconds

    def step(
        self,
        step: int,
        *,
        epoch: int,
        rows: int,
        loss: float | None,
        learning_rate: float,
        seconds: float,
        training_seconds: float | None = None,
    ) -> None:
        """One finished step, counted from 0: `rows` of it, its wall time, and the run's training time if it resumed."""
        with self._lock:
            self._now |= {"step": step + 1, "epoch": epoch, "learning_rate": finite(learning_rate)}
            self._now["rows"] += rows
            self._steps_seen += 1
            if self._steps_seen == 2:
                self._recent.clear()  # the first step waited for the pipeline to fill and for compilation
            self._recent.append((seconds, rows))
            self._training_seconds = self._training_seconds + seconds if training_seconds is None else training_seconds
            self._learning_rate.add(step, learning_rate)
            if loss is not None:
                self._now["loss"] = finite(loss)
                self._loss.add(step, loss)

    def estimate(
        self,
        step: int,
        *,
        outcome: str,
        relative: float | None,
        absolute: float | None,
        per_rate: tuple[float, float] | None = None,
        factor: AlphaFactor | None = None,
    ) -> None:
        """One α* estimate of `step`.

        `per_rate` is its (slope/η, curvature/η²), η the learning rate; `factor` pools the latest ones, this included.
        """
        with self._lock:
            self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
            self._factor = factor or self._factor
            if relative is None or absolute is None or not math.isfinite(absolute):
                return
            self._relative.append(relative)
            self._estimates += 1
            if self._estimates % self._alpha_stride == 0:
                self._alphas.append((step, absolute, *(per_rate or (math.nan, math.nan))))
            if len(self._alphas) == ALPHAS:
                self._alphas = self._alphas[1::2]
                self._alpha_stride *= 2

    def evaluation(self, step: int, split: str, *, loss: float, auc: float | None) -> None:
        """The latest evaluation of a split; the best validation loss is remembered."""
        with self._lock:
            best = min(loss, self._evaluations.get(split, {}).get("best") or math.inf)
            auc = None if auc is None else finite(auc)
            self._evaluations[split] = {"step": step, "loss": finite(loss), "auc": auc, "best": finite(best)}

    def message(self, step: int, text: str) -> None:
        """A sentence for people, such as what a policy just changed."""
        with self._lock:
            self._messages.appendleft({"step": step, "text": text})

    def snapshot(self) -> dict[str, Any]:
        """All of it as JSON values, without NaN; times in seconds."""
        bound = self._clock.bound()
        phases = self._clock.recent_phases()
        first = self._clock.first_step
        with self._lock:
            seconds = sum(step_seconds for step_seconds, _ in self._recent)
            preparing = {"state": "preparing"} if self._now["state"] == "training" and not self._steps_seen else {}
            return (
                self._now
                | preparing
                | {
                    "total_steps": self._total_steps,
                    "elapsed_seconds": self._monotonic() - self._started,
                    "progress": self._progress(),
                    "seconds_left": self._seconds_left(seconds),
                    "rows_per_second": sum(rows for _, rows in self._recent) / seconds if seconds else None,
                    "step_seconds": seconds / len(self._recent) if self._recent else None,
                    "bound": {
                        "kind": bound.kind,
                        "data_share": bound.data_share,
                        "sentence": str(bound),
                    },
                    "phases": phases,
                    "loss_curve": self._loss.points(),
                    "learning_rate_curve": self._learning_rate.points(),
                    "first_step": {"seconds": first.seconds, "phases": first.phases}
                    if first and bound.steps > 1
                    else None,
                    "alpha_bins": alpha_bins(self._alphas),
                    "alpha": self._alpha(),
                    "outcomes": dict(self._outcomes),
                    "evaluations": dict(self._evaluations),
                    "messages": list(self._messages),
                }
            )

    def _alpha(self) -> dict[str, Any]:
        """The pooled factor with its margin, and the middle half of the estimates it came from as their spread."""
        shown: dict[str, Any] = {"estimates": self._factor.estimates, "least": LEAST_ESTIMATES}
        if self._factor.factor is None or len(self._relative) < LEAST_ESTIMATES:
            return shown | {"factor": None, "margin": None, "lower": None, "upper": None}
        lower, _, upper = statistics.quantiles(self._relative, n=4, method="inclusive")
        margin = None if self._factor.margin is None else finite(self._factor.margin)
        return shown | {"factor": finite(self._factor.factor), "margin": margin, "lower": lower, "upper": upper}

    def _progress(self) -> float | None:
        """The share of the budget used, 0..1, by whichever budget is nearer its end; None without one."""
        shares = []
        if self._total_steps:
            shares.append(self._now["step"] / self._total_steps)
        if self._budget_seconds:
            shares.append(self._training_seconds / self._budget_seconds)
        return min(max(shares), 1.0) if shares else None

    def _seconds_left(self, recent_seconds: float) -> float | None:
        """Training time left at the recent speed, the first step left out; None without a budget or a second step."""
        left = []
        if self._total_steps and self._steps_seen > 1:
            left.append((self._total_steps - self._now["step"]) * recent_seconds / len(self._recent))
        if self._budget_seconds:
            left.append(self._budget_seconds - self._training_seconds)
        return max(min(left), 0.0) if left else None


def alpha_bins(alphas: Sequence[tuple[int, float, float, float]], bins: int = BINS) -> list[dict[str, Any]]:
    """The rate that α* suggests along the run, in about `bins` bins of nearly equal count; none before the tenth.

    Takes (step, suggested rate, slope/η, curvature/η²) of every estimate, η the learning rate. A bin has the ratio of
    averages (`pooled`, None if it has no finite one), the quartiles, and whether measuring paused before it
    (`after_gap`).
    """
    if len(alphas) < LEAST_ESTIMATES:
        return []
    cuts = [0, *measuring_gaps([step for step, *_ in alphas]), len(alphas)]
    result = []
    for start, stop in itertools.pairwise(cuts):
        pieces = max(min(round(bins * (stop - start) / len(alphas)), (stop - start) // BIN_ESTIMATES), 1)
        edges = [start + piece * (stop - start) // pieces for piece in range(pieces + 1)]
        gap = start > 0
        for first, last in itertools.pairwise(edges):
            chosen = alphas[first:last]
            if len(chosen) < 4:
                continue
            lower, _, upper = statistics.quantiles((estimate[1] for estimate in chosen), n=4, method="inclusive")
            slope, curvature = sum(estimate[2] for estimate in chosen), sum(estimate[3] for estimate in chosen)
            pooled = finite(-slope / curvature) if curvature > 0 else None
            middle = chosen[len(chosen) // 2][0]
            result.append({"step": middle, "pooled": pooled, "lower": lower, "upper": upper, "after_gap": gap})
            gap = False
    return result


def measuring_gaps(steps: Sequence[float], last_steps: Sequence[float] | None = None) -> list[int]:
    """Indices of the estimates before which measuring paused: much longer than it usually does between two.

    `steps` ascend; where an estimate stands for later ones as well, those reach to its `last_steps`. If estimates come
    in bursts, the usual pause between bursts does not count.
    """
    pauses = [after - before for before, after in zip(last_steps or steps, steps[1:], strict=False)]
    if len(pauses) < 2:
        return []
    usual = statistics.median(pauses)
    longer = [pause for pause in pauses if pause > 4 * usual]
    span = steps[-1] - steps[0]
    in_bursts = len(longer) >= 3 and sum(longer) > span / 2
    least = 3 * statistics.median(longer) if in_bursts else max(5 * usual, span / BINS)
    return [index for index, pause in enumerate(pauses, 1) if pause > least]


def finite(value: float) -> float | None:
    """The value, or None if JSON could not carry it."""
    return value if math.isfinite(value) else None
