"""What earlier processes of a run recorded, told to the live page of this one: its curves go on where they were."""

from __future__ import annotations

from collections import deque

import numpy as np

from ops.live import LiveStatus
from trainer.job.observer import POOLED_ESTIMATES, pooled_factor
from trainer.records import RunHistory


def replay_history(history: RunHistory, live: LiveStatus) -> deque[tuple[float, float]]:
    """Tells `live` of the steps, estimates, evaluations and the latest horizon of `history`.

    Gives (slope, curvature) of the latest estimates with a number, for α* to be pooled over them and those to come.
    """
    steps, alpha = history.steps, history.alpha
    numbers = [steps[name].tolist() for name in ("last_step", "steps", "loss", "learning_rate")]
    live.restore_steps(
        ((int(last), int(count), loss, rate) for last, count, loss, rate in zip(*numbers, strict=True)),
        total=history.step_count,
    )
    chosen = history.measured
    rate = np.where(alpha["learning_rate"] > 0, alpha["learning_rate"], np.nan)[chosen]
    slope, curvature = alpha["slope"][chosen], alpha["curvature"][chosen]
    both = np.isfinite(slope) & np.isfinite(curvature) & np.isfinite(rate)
    latest = deque(zip(slope[both].tolist(), curvature[both].tolist(), strict=True), maxlen=POOLED_ESTIMATES)
    columns = [alpha[name][chosen].tolist() for name in ("step", "measured", "relative", "absolute")]
    rates = zip((slope / rate).tolist(), (curvature / rate**2).tolist(), strict=True)
    live.restore_estimates(
        (
            (int(step), int(count), relative, absolute, per_rate)
            for step, count, relative, absolute, per_rate in zip(*columns, rates, strict=True)
        ),
        outcomes=history.outcomes,
        factor=pooled_factor(latest) if latest else None,
    )
    horizon = history.horizon
    since = alpha["last_step"][chosen].max(initial=-1)
    for index in np.flatnonzero(np.isfinite(horizon["relative"]) & (horizon["step"] > since))[-1:]:
        steps_at_once, relative, error = (horizon[name][index] for name in ("horizon", "relative", "standard_error"))
        live.horizon(int(steps_at_once), float(relative), None if np.isnan(error) else float(error))
    for split, table in history.evaluations.items():
        for step, loss, auc in zip(*(table[name].tolist() for name in ("step", "loss", "auc")), strict=True):
            live.evaluation(int(step), split, loss=loss, auc=None if np.isnan(auc) else auc)
    if live.latest_horizon is not None:  # it leads the rate, and single steps are of the run's beginning
        latest.clear()
    return latest
