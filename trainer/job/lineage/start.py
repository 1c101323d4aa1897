"""A run begun or continued: from its newest whole checkpoint, or from an older one that was asked for."""

from __future__ import annotations

import math
from pathlib import Path
from shlex import quote
from typing import Any

from stepsize.policies import FIRST_SERIES
from trainer.config import Config, ConfigError
from trainer.job.lineage.held_out import say_what_is_held_out
from trainer.job.observer import Outlets
from trainer.job.training_state import TrainingState
from trainer.learner import learning_rate
from trainer.records import Checkpoint, checkpoint_steps, lost_random_state, set_aside

FEWEST_STEPS = 100
"""Of a budget in which policy auto has measured many steps as a whole some ten times."""


def checkpoint_to_continue(run: Path, *, step: int | None, state: TrainingState) -> Checkpoint | None:
    """The newest whole checkpoint, or the one of `step`, for `state`; None if nothing was saved and no step is asked
    for.

    Raises: ConfigError if `step` has no checkpoint; as `load_latest` where what there is is damaged.
    """
    if step is None:
        return state.newest(run)
    found = state.newest(run, which=lambda saved: saved == step)
    if found is None:
        steps = ", ".join(map(str, reversed(checkpoint_steps(run))))
        raise ConfigError(
            f"{run}: has no checkpoint of step {step} to continue from; "
            + (f"it has {steps}" if steps else "it has none")
        )
    return found


def leave_later(run: Path, step: int, outlets: Outlets) -> None:
    """Sets aside the checkpoints after `step`, which the run goes on from; says so."""
    left = set_aside(run, after=step) if outlets.directory.writes else []
    if left:
        names = ", ".join(reversed(left))
        message = (
            f"going back to step {step:,}: {names} set aside as left-..., deleted once a later step is saved again"
        )
        outlets.directory.event("back", step=step, left=left, message=message)
        outlets.console.say(message)


def tell_of_changes(
    changes: list[tuple[str, Any, Any]], found: Checkpoint, state: TrainingState, outlets: Outlets, *, step: int
) -> None:
    """Records what is set otherwise than it was, and what followed from it when `found` was loaded."""
    if not changes:
        return
    words = ", ".join(f"{key} {_value(then)} → {_value(now)}" for key, now, then in changes)
    message = f"from step {step:,} on: {words}"
    if any(key in ("stepsize.policy", "optimizer.lr") for key, _, _ in changes):
        message += "; the policy begins anew"
    left = (found.state.get("recovery") or {}).get("rate_factor", 1.0)
    if left != state.recovery.rate_factor:
        message += "; the rate is a whole one again, and its rollbacks are forgotten"
    values = {key: {"from": then, "to": now} for key, now, then in changes}
    outlets.directory.event("settings", step=step, changes=values, message=message)
    outlets.console.say(message)


def warn_of_changes(found: Checkpoint, state: TrainingState, outlets: Outlets) -> None:
    """Says what makes this run another than it would have been without the stop."""
    for damaged in found.damaged:
        outlets.warn(f"{damaged}; continuing from {found.path.name}", step=found.step)
    if (lost := lost_random_state(found.state["random"])) is not None:
        outlets.warn(lost, step=found.step)
    for key in state.learner.changed_factories(found):
        outlets.warn(
            f"the file of {key} has changed since step {found.step:,}; the run goes on with it", step=found.step
        )
    before, now = found.state["total_steps"], state.total_steps
    if before != now:
        outlets.warn(
            f"the budget was {before} steps and is {now}; a schedule or policy that counts on it changes with it",
            step=found.step,
        )


def tell_of_beginning(config: Config, state: TrainingState, outlets: Outlets) -> None:
    """Says how many steps a new run has, which rows it keeps for probing, and where policy auto is unsure."""
    outlets.metrics.progress(0, total_steps=state.total_steps)
    say_what_is_held_out(config, state, outlets)
    _say_what_counts(state, outlets)
    if config.stepsize.policy != "auto" or state.total_steps is None:
        return
    passes = state.total_steps / (state.feed.steps_per_epoch or math.inf)
    if state.total_steps < FEWEST_STEPS:
        outlets.warn(
            f"stepsize.policy = 'auto' has little time in {state.total_steps} steps: the first {1 + FIRST_SERIES} or "
            "more it measures one by one, and from the last 15 % it learns nothing; its rate may be far from the best",
            step=0,
        )
    if passes > 1.01 and config.data.pairing != "held_out":
        outlets.warn(
            f"the training rows are read {passes:.3g} times: on rows that were trained on before α* does not show that "
            "a model overfits, so stepsize.policy = 'auto' holds its rate there as if it learned; go by the validation "
            "loss and the best checkpoint",
            step=0,
        )


def _say_what_counts(state: TrainingState, outlets: Outlets) -> None:
    """Says how the data's rows are weighed, and what was left out of them."""
    loss, manifest = state.config.loss, state.manifest
    if column := manifest.format.weight:
        mean = manifest.statistics["columns"][column]["mean"]
        counts = f"a row counts as often as {column!r} says, {mean:.4g} times on average"
        outlets.console.say(
            f"{counts}; loss.sample_weights = false has each count once"
            if loss.sample_weights
            else f"the weights in {column!r} are not used, as loss.sample_weights = false has it"
        )
    if manifest.negatives_kept < 1:
        corrected = "answers stay theirs" if loss.correction == "none" else "answers are corrected to the whole log"
        outlets.console.say(
            f"the training rows have {manifest.negatives_kept:g} of the log's rows of label 0; {corrected} "
            f"(loss.correction = {loss.correction!r})"
        )


def divergence_advice(config: Config, state: TrainingState, run: Path) -> str:
    """What to do about a run that has diverged too often, as it is typed where that can be said."""
    recovery, divergence = state.recovery, state.watch.verdict(final=True)
    sound = recovery.step if recovery.sound else None
    since = math.inf if divergence is None else divergence.since
    steps = [step for step in checkpoint_steps(run) if step < since or step == sound]
    if not steps:
        return (
            "nothing was saved before: begin a new run with a lower optimizer.lr, a longer warm-up, or "
            "stepsize.policy = 'auto', which finds the rate"
        )
    peak = config.optimizer.lr or learning_rate(state.learner.optimizer)
    lower = peak * recovery.rate_factor / 10
    return (
        f"to go on at a tenth of the rate: alphastream train {quote(f'{run}/config.toml')} --run {quote(str(run))} "
        f"--from-checkpoint {steps[0]} --optimizer.lr {lower:.2g}; what was not finite is in {run}/events.jsonl"
    )


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
