"""A run that has diverged, put back to its last good moment at a lower rate, with the rows since left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.errors import StorageError
from trainer.config import Config
from trainer.divergence import Divergence
from trainer.job.checkpointing import Checkpointing
from trainer.job.recording.replay import replay_history
from trainer.job.training_state import TrainingState
from trainer.loop import Position
from trainer.records import Checkpoint, RunHistory, all_finite, checkpoint_steps, set_aside


def roll_back(
    config: Config,
    state: TrainingState,
    checkpointing: Checkpointing,
    position: Position,
    divergence: Divergence,
) -> bool:
    """Puts the run back, `position` with it; False, and nothing is changed, after `divergence.rollbacks` of them.

    It goes back to the newest whole checkpoint of before the divergence with finite weights, else to the weights it
    began with; where newer checkpoints have pushed that one out, to the oldest there is, and to the first weights if
    that did not help. Weights, average, optimizer, policy, measurements, counts of steps and rows and the records go
    back; the stream and the training time go on; the rate is what `Recovery` leaves of it.

    Killed at any moment, the run does the same again or goes on behind it: checkpoints after the one gone back to are
    set aside first, and then that one is replaced by what the rollback made of it, in one rename. Until then the old
    one is the newest, from where the same rows lead to the same divergence.
    """
    outlets, recovery = checkpointing.outlets, state.recovery
    if recovery.rollbacks >= config.divergence.rollbacks:
        return False
    checkpointing.drain()
    run, came_from = outlets.directory.path, replace(position)
    found, sound = _good_checkpoint(state, run, divergence)
    kept = recovery.state_dict()
    reached = state.begin_again() if found is None else state.go_back(found)
    records: Mapping[str, int] = {} if found is None else found.state["records"]
    recovery.load_state_dict(kept)
    skipped = came_from.rows - reached.rows
    recovery.roll_back(reached.step, from_step=came_from.step, rows=skipped, sound=sound)
    state.watch.calm()
    _move(position, reached, seconds=came_from.training_seconds)
    outlets.directory.cut(records)
    if state.ranks.first:
        set_aside(run, after=position.step)
    state.ranks.told_by_first(None)  # so that no rank looks for checkpoints before
    event = {
        "from": came_from.step,
        "to": position.step,
        "reason": divergence.reason,
        "rate_factor": recovery.rate_factor,
        "rows_skipped": skipped,
        "rollbacks": recovery.rollbacks,
        "message": _in_words(came_from, position, divergence, state, found, most=config.divergence.rollbacks),
    }
    outlets.directory.event("rollback", step=came_from.step, **event)
    outlets.console.warn(event["message"])
    outlets.metrics.rolled_back()
    outlets.metrics.set("rate_factor", recovery.rate_factor)
    outlets.tensorboard.begin(steps=position.step)
    outlets.live.forget()
    outlets.estimates.clear()
    outlets.estimates.extend(replay_history(RunHistory.load(run), outlets.live))
    outlets.live.message(position.step, event["message"])
    outlets.live.resume(
        step=position.step,
        epoch=state.feed.position.epoch,
        rows=position.rows,
        training_seconds=position.training_seconds,
    )
    checkpointing.broken_weights, checkpointing.goes_on_from = None, position.step
    checkpointing.save_rollback(position)
    return True


def _good_checkpoint(state: TrainingState, run: Path, divergence: Divergence) -> tuple[Checkpoint | None, bool]:
    """What to go back to, None for the weights that the run began with; and whether it is of before the divergence."""
    recovery, steps = state.recovery, state.ranks.told_by_first(checkpoint_steps(run))
    again = recovery.step if recovery.in_place and recovery.sound else None
    found = _finite_before(state, run, divergence.since if again is None else max(divergence.since, again + 1))
    if found is None and steps and recovery.sound:
        return _finite_before(state, run, steps[-1] + 1), False
    return found, True


def _finite_before(state: TrainingState, run: Path, step: int) -> Checkpoint | None:
    while (steps := state.ranks.told_by_first(checkpoint_steps(run))) and min(steps) < step:
        try:
            found = state.newest(run, which=step.__gt__)
        except StorageError:  # all of them are damaged
            return None
        if found is None:
            return None
        buffers = {name for name, _ in state.learner.model.named_buffers()}
        finite = all_finite(value.cpu() for name, value in found.tensors["model"].items() if name not in buffers)
        if all(state.ranks.gather_values(finite)):
            return found
        step = found.step
    return None


def _move(position: Position, reached: Position, *, seconds: float) -> None:
    """`position` at `reached`, but for the training time, which is spent."""
    vars(position).update(asdict(reached))
    position.training_seconds = position.last_checkpoint_seconds = seconds
    position.last_evaluation_seconds = seconds
    position.last_checkpoint_step = position.step


def _in_words(
    came_from: Position,
    position: Position,
    divergence: Divergence,
    state: TrainingState,
    found: Checkpoint | None,
    *,
    most: int,
) -> str:
    goal = f"step {position.step:,}" if found is not None else "the weights it began with"
    recovery = state.recovery
    held = (
        f"; from step {recovery.held_until:,} on the policy measures the rate again" if _measures_again(state) else ""
    )
    return (
        f"diverged at step {came_from.step:,}: {divergence.reason}; back to {goal}, from here on at "
        f"{recovery.rate_factor:.3g} times the rate and without the {came_from.rows - position.rows:,} rows since "
        f"(rollback {recovery.rollbacks} of {most}){held}"
    )


def _measures_again(state: TrainingState) -> bool:
    """Whether a policy that sets the rate hears of estimates again before its cool-down, or the budget, ends that."""
    until, total = state.recovery.held_until, state.total_steps
    within = total is None or until < total
    return state.policy.sets_rate and within and not state.policy.cooldown.begun(until)
