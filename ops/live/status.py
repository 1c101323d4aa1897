"""What the live page shows: the state of a run in bounded memory."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ops.live.alpha import LEAST_ESTIMATES, AlphaFactor, alpha_bins
from ops.live.curve import Curve, finite
from ops.ranks import RankTimes
from ops.step_clock import LONG_WAIT_SECONDS, StepClock

ALPHAS = 2_880
MESSAGES = 24
"""More than the steps withheld that are told one by one, so that these push no rollback out of sight."""
LONG_WAIT = "waiting for data"
"""The state of a run that trains, in the time that it has been waiting for rows for `LONG_WAIT_SECONDS`."""


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
        self.total_steps = total_steps
        self._budget_seconds = budget_seconds
        self._lock = threading.Lock()
        self._now: dict[str, Any] = {"run": run, "state": "starting", "step": 0, "epoch": 0, "rows": 0}
        self._training_seconds = 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=200)
        self._draw_anew()
        self._steps_seen = 0
        self._first_ended, self._step_seconds = 0.0, 0.0
        """When the first step had ended, and what the ones since took."""
        self._hung: str | None = None
        self._ranks: RankTimes | None = None
        self._messages: deque[dict[str, Any]] = deque(maxlen=MESSAGES)

    def _draw_anew(self) -> None:
        """Nothing is drawn of steps, estimates and evaluations."""
        self._loss, self._learning_rate = Curve(), Curve()
        self._alphas: list[tuple[int, float, float, float]] = []
        self._alpha_stride, self._estimates = 1, 0
        self._outcomes: dict[str, int] = {}
        self._relative: deque[float] = deque(maxlen=200)
        self._factor = AlphaFactor(estimates=0, factor=None, standard_error=None)
        self._horizon: dict[str, Any] | None = None
        self._evaluations: dict[str, dict[str, Any]] = {}
        self._evaluation_curves: dict[str, Curve] = {}

    def forget(self) -> None:
        """The run has gone back: what was drawn is drawn anew, of the steps that count, by who calls this."""
        with self._lock:
            self._draw_anew()

    def state(self, text: str) -> None:
        """What the run is doing: starting, training, evaluating, saving, stopping, finished ..."""
        with self._lock:
            self._now["state"] = text

    def hung(self, text: str | None) -> None:
        """That the run hangs, and in what; None once it doesn't."""
        with self._lock:
            self._hung = text

    def ranks(self, times: RankTimes) -> None:
        """Where the time of all ranks went over the latest stretch."""
        with self._lock:
            self._ranks = times

    @property
    def steps_done(self) -> int:
        """Steps of the run, those of earlier processes included."""
        with self._lock:
            return self._now["step"]

    def resume(self, *, step: int, epoch: int, rows: int, training_seconds: float) -> None:
        """Go on from where an earlier process stopped, after `step` steps over `rows` rows."""
        with self._lock:
            self._now |= {"step": step, "epoch": epoch, "rows": rows}
            self._training_seconds = training_seconds

    def restore_steps(self, steps: Iterable[tuple[int, int, float, float]], *, total: int) -> None:
        """The curves of `total` steps of earlier processes: (last step, how many, mean loss, mean rate), ascending."""
        with self._lock:
            for curve in (self._loss, self._learning_rate):
                curve.expect(total)
            for last, count, loss, rate in steps:
                self._learning_rate.add(last, rate, steps=count)
                self._loss.add(last, loss, steps=count)
                self._now |= {"loss": finite(loss), "learning_rate": finite(rate)}

    def restore_estimates(
        self,
        estimates: Iterable[tuple[int, int, float, float, tuple[float, float]]],
        *,
        outcomes: Mapping[str, int],
        factor: AlphaFactor | None,
    ) -> None:
        """The α* of earlier processes: (step, how many it stands for, relative, absolute, `per_rate`), ascending.

        Those with a number only; `outcomes` counts all of them, and `factor` pools the latest.
        """
        found = [estimate for estimate in estimates if math.isfinite(estimate[3])]
        with self._lock:
            self._outcomes = dict(outcomes)
            self._factor = factor or self._factor
            while sum(count for _, count, *_ in found) // self._alpha_stride >= ALPHAS:
                self._alpha_stride *= 2
            for step, count, relative, absolute, per_rate in found:
                self._take(step, relative, absolute, per_rate, count=count)

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
            if self._steps_seen == 1:
                self._first_ended = self._monotonic()
            else:
                self._step_seconds += seconds
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
            self._factor, self._horizon = factor or self._factor, None
            if relative is None or absolute is None or not math.isfinite(absolute):
                return
            self._take(step, relative, absolute, per_rate or (math.nan, math.nan))

    @property
    def latest_horizon(self) -> dict[str, Any] | None:
        """What `horizon` was told last: `steps`, `relative` and its 95 % `margin`."""
        with self._lock:
            return self._horizon

    def horizon(self, steps: int, relative: float, standard_error: float | None) -> None:
        """α* of the latest `steps` steps as a whole, which stands for that of single ones until one comes again."""
        margin = None if standard_error is None else finite(1.96 * standard_error)
        with self._lock:
            self._horizon = {"steps": steps, "relative": finite(relative), "margin": margin}

    def _take(
        self, step: int, relative: float, absolute: float, per_rate: tuple[float, float], *, count: int = 1
    ) -> None:
        self._relative.append(relative)
        before, self._estimates = self._estimates, self._estimates + count
        if self._estimates // self._alpha_stride > before // self._alpha_stride:
            self._alphas.append((step, absolute, *per_rate))
        if len(self._alphas) == ALPHAS:
            self._alphas = self._alphas[1::2]
            self._alpha_stride *= 2

    def evaluation(self, step: int, split: str, *, loss: float, auc: float | None) -> None:
        """The latest evaluation of a split; the best validation loss is remembered."""
        with self._lock:
            before = self._evaluations.get(split, {}).get("best")
            best = min((value for value in (finite(loss), before) if value is not None), default=math.nan)
            auc = None if auc is None else finite(auc)
            self._evaluations[split] = {"step": step, "loss": finite(loss), "auc": auc, "best": finite(best)}
            self._evaluation_curves.setdefault(split, Curve()).add(step, loss)

    def message(self, step: int, text: str) -> None:
        """A sentence for people, such as what a policy just changed."""
        with self._lock:
            self._messages.appendleft({"step": step, "text": text})

    def seconds_left(self) -> float | None:
        """As `_seconds_left`, of now."""
        with self._lock:
            return self._seconds_left(sum(step_seconds for step_seconds, _ in self._recent))

    def snapshot(self) -> dict[str, Any]:
        """All of it as JSON values, without NaN; times in seconds.

        `rows_per_second` is of the latest steps by wall time, pauses included, as /metrics has it;
        `rows_per_training_second` leaves evaluations and checkpoints out.
        """
        bound = self._clock.bound()
        phases, waiting = self._clock.recent_phases(), self._clock.waiting_seconds()
        first = self._clock.first_step
        with self._lock:
            seconds = sum(step_seconds for step_seconds, _ in self._recent)
            speed = sum(rows for _, rows in self._recent) / seconds if seconds else None
            return self._now | {
                "state": self._state(waiting),
                "waiting_seconds": waiting,
                "total_steps": self.total_steps,
                "elapsed_seconds": self._monotonic() - self._started,
                "progress": self._progress(),
                "seconds_left": self._seconds_left(seconds),
                "rows_per_second": None if speed is None else speed * (1 - bound.pause_share),
                "rows_per_training_second": speed,
                "step_seconds": seconds / len(self._recent) if self._recent else None,
                "bound": {
                    "kind": bound.kind,
                    "data_share": bound.data_share,
                    "pause_share": bound.pause_share,
                    "communication_share": bound.communication_share,
                    "seconds": bound.seconds,
                    "sentence": str(bound),
                },
                "phases": phases,
                "ranks": None if self._ranks is None else _told(self._ranks),
                "loss_curve": self._loss.points(),
                "learning_rate_curve": self._learning_rate.points(),
                "first_step": {"seconds": first.seconds, "phases": first.phases} if first and bound.steps > 1 else None,
                "alpha_bins": alpha_bins(self._alphas),
                "alpha": self._alpha(),
                "horizon": self._horizon,
                "outcomes": dict(self._outcomes),
                "evaluations": dict(self._evaluations),
                "evaluation_curves": {split: curve.points() for split, curve in self._evaluation_curves.items()},
                "messages": list(self._messages),
                "hung": self._hung,
            }

    def _state(self, waiting: float) -> str:
        """What the run is doing, where training has not begun or waits for rows more closely than it was told."""
        if self._hung:
            return "hung"
        if self._now["state"] != "training":
            return self._now["state"]
        if waiting >= LONG_WAIT_SECONDS:
            return LONG_WAIT
        return "training" if self._steps_seen else "preparing"

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
        if self.total_steps:
            shares.append(self._now["step"] / self.total_steps)
        if self._budget_seconds:
            shares.append(self._training_seconds / self._budget_seconds)
        return min(max(shares), 1.0) if shares else None

    def _seconds_left(self, recent_seconds: float) -> float | None:
        """Time left; None without a budget or a second step.

        Steps count as long as the recent ones took, and all training time by what passed beside it, in evaluations and
        checkpoints, since the first step.
        """
        left = []
        if self.total_steps and self._steps_seen > 1:
            left.append((self.total_steps - self._now["step"]) * recent_seconds / len(self._recent))
        if self._budget_seconds:
            left.append(self._budget_seconds - self._training_seconds)
        return max(min(left), 0.0) * self._time_beside() if left else None

    def _time_beside(self) -> float:
        """Wall time over that of the steps, since the end of the first; at least 1."""
        wall = self._monotonic() - self._first_ended
        return max(wall / self._step_seconds, 1.0) if self._step_seconds else 1.0


def _told(times: RankTimes) -> dict[str, Any]:
    """Ranks as JSON values: `phases` has the seconds of each as [minimum, mean, maximum]."""
    return {
        "ranks": times.ranks,
        "steps": times.steps,
        "slowest": times.slowest,
        "waited_share": times.waited_share,
        "sentence": str(times),
        "phases": {name: [times.minimum[name], mean, times.maximum[name]] for name, mean in times.mean.items()},
    }
