"""The best evaluation of a run: followed, told of when it is left behind, and a checkpoint kept to go back to."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from trainer.divergence import ValidationTrend
from trainer.job.observer import Outlets
from trainer.records import checkpoint_up_to


def follow_validation(trend: ValidationTrend, outlets: Outlets, *, step: int, loss: float) -> None:
    """Takes in a validation loss; tells, once for each best one, of a run that has got worse and worse since."""
    found = trend.add(step, loss)
    if trend.best is not None:
        outlets.metrics.set("validation_best_step", trend.best[0])
    outlets.metrics.set("validation_worsening", float(trend.worse))
    if found is None:
        return
    message = f"{found}; {_advice(outlets.directory.path, found.best_step)}"
    outlets.directory.event(
        "overfitting",
        step=step,
        loss=found.loss,
        best_step=found.best_step,
        best_loss=found.best_loss,
        message=message,
    )
    outlets.live.message(step, message)
    outlets.console.warn(message)


def tell_of_best(trend: ValidationTrend, outlets: Outlets, *, ended: bool) -> None:
    """Says, where a run has `ended` whose last evaluation is worse than its best by more than noise, how to get at the
    best weights."""
    if not ended or trend.best is None or not trend.left_behind:
        return
    run, (step, loss) = outlets.directory.path, trend.best
    remedy = "" if checkpoint_up_to(run, step) is None else f"; `alphastream evaluate {quote(str(run))} --best`"
    outlets.console.say(f"best at step {step:,}: validation {loss:.5f}, at the end {trend.latest:.5f}{remedy}")


def _advice(run: Path, best_step: int) -> str:
    """What to do about it, as it is typed where that can be said."""
    step = checkpoint_up_to(run, best_step)
    if step is None:
        return "train for fewer epochs, or save more often, so that there is a checkpoint near the best step"
    return (
        "train for fewer epochs, or go back and on at a lower rate: alphastream train "
        f"{quote(f'{run}/config.toml')} --run {quote(str(run))} --from-checkpoint {step} --optimizer.lr RATE"
    )
