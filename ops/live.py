"""What the live page shows: the state of a run in bounded memory."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ops.step_clock import StepClock

POINTS = 360
"""At most this many points of a curve are kept; beyond it, neighbors are averaged."""
ALPHAS = 2_880
WINDOWS = 36
WINDOW_ESTIMATES = 12
MESSAGES = 8


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
        """(step, mean value) of every point, None where it is not finite (JSON has no NaN)."""
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
        self._alphas: list[tuple[int, float]] = []
        self._alpha_stride = 1
        self._estimates = 0
        self._outcomes: dict[str, int] = {}
        self._relative: deque[float] = deque(maxlen=200)
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
            self._recent.append((seconds, rows))
            self._training_seconds = self._training_seconds + seconds if training_seconds is None else training_seconds
            self._learning_rate.add(step, learning_rate)
            if loss is not None:
                self._now["loss"] = finite(loss)
                self._loss.add(step, loss)

    def estimate(self, step: int, *, outcome: str, relative: float | None, absolute: float | None) -> None:
        """One α* estimate of `step`."""
        with self._lock:
            self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
            if relative is None or absolute is None or not math.isfinite(absolute):
                return
            self._relative.append(relative)
            self._estimates += 1
            if self._estimates % self._alpha_stride == 0:
                self._alphas.append((step, absolute))
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
        with self._lock:
            seconds = sum(step_seconds for step_seconds, _ in self._recent)
            return self._now | {
                "total_steps": self._total_steps,
                "elapsed_seconds": self._monotonic() - self._started,
                "progress": self._progress(),
                "seconds_left": self._seconds_left(seconds),
                "rows_per_second": sum(rows for _, rows in self._recent) / seconds if seconds else None,
                "step_seconds": seconds / len(self._recent) if self._recent else None,
                "bound": {"kind": bound.kind, "data_share": bound.data_share, "sentence": str(bound)},
                "phases": phases,
                "loss_curve": self._loss.points(),
                "learning_rate_curve": self._learning_rate.points(),
                "alpha_windows": alpha_windows(self._alphas),
                "alpha_relative_median": statistics.median(self._relative) if self._relative else None,
                "outcomes": dict(self._outcomes),
                "evaluations": dict(self._evaluations),
                "messages": list(self._messages),
            }

    def _progress(self) -> float | None:
        """The share of the budget used, 0..1, by whichever budget is nearer its end; None without one."""
        shares = []
        if self._total_steps:
            shares.append(self._now["step"] / self._total_steps)
        if self._budget_seconds:
            shares.append(self._training_seconds / self._budget_seconds)
        return min(max(shares), 1.0) if shares else None

    def _seconds_left(self, recent_seconds: float) -> float | None:
        """Training time left at the recent speed; None without a budget or before the first step."""
        left = []
        if self._total_steps and self._recent:
            left.append((self._total_steps - self._now["step"]) * recent_seconds / len(self._recent))
        if self._budget_seconds:
            left.append(self._budget_seconds - self._training_seconds)
        return max(min(left), 0.0) if left else None


def alpha_windows(alphas: list[tuple[int, float]], windows: int = WINDOWS) -> list[Mapping[str, float]]:
    """Median and quartiles of the estimates (step, α_abs) in at most `windows` stretches of nearly equal count."""
    pieces = max(min(windows, len(alphas) // WINDOW_ESTIMATES), 1)
    result = []
    for piece in range(pieces):
        stretch = alphas[piece * len(alphas) // pieces : (piece + 1) * len(alphas) // pieces]
        if len(stretch) < 4:
            continue
        lower, median, upper = statistics.quantiles((value for _, value in stretch), n=4, method="inclusive")
        result.append({"step": stretch[len(stretch) // 2][0], "median": median, "lower": lower, "upper": upper})
    return result


def finite(value: float) -> float | None:
    """The value, or None where JSON could not carry it."""
    return value if math.isfinite(value) else None
