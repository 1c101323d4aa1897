"""How far a run has come, when it evaluates, saves and ends, and why it stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trainer.budget import BudgetConfig, EvalConfig
from trainer.records import CheckpointConfig


class Stop(Enum):
    """Why a run stopped; the value is the command's exit code."""

    BUDGET = (0, "the budget is reached")
    TARGET = (0, "the target is reached")
    DIVERGED = (3, "training diverged")
    IDLE = (0, "no new rows came")
    INTERRUPTED = (143, "stopped by a signal; resumable")
    HUNG = (74, "stopped because it hung; resumable")

    @property
    def exit_code(self) -> int:
        return self.value[0]

    @property
    def text(self) -> str:
        return self.value[1]

    @property
    def unfinished(self) -> bool:
        """Whether the run was stopped with work left, which the same command goes on with."""
        return self in (Stop.INTERRUPTED, Stop.HUNG)


@dataclass(kw_only=True)
class Position:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    """Steps done."""
    rows: int = 0
    """Rows trained on."""
    training_seconds: float = 0.0
    """Wall time of all sessions less start, evaluation and checkpoints; of the steps whose time is read."""
    last_evaluation_step: int = 0
    last_evaluation_seconds: float = 0.0
    last_checkpoint_step: int = 0
    last_checkpoint_seconds: float = 0.0
    validation_loss: float | None = None
    """Of the latest evaluation that had one."""


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """When a run evaluates, saves and ends, judged by how far it has come; by default never."""

    budget: BudgetConfig = field(default_factory=BudgetConfig)
    total_steps: int | None = None
    """Steps until the budget's steps or epochs are used up; None if it counts neither."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig | None = None
    """When to save before the end; None: never."""

    def evaluation_due(self, done: Position) -> bool:
        config = self.evaluation
        by_steps = config.every_steps and done.step - done.last_evaluation_step >= config.every_steps
        by_time = config.every_seconds and done.training_seconds - done.last_evaluation_seconds >= config.every_seconds
        return bool(by_steps or by_time)

    def checkpoint_due(self, done: Position) -> bool:
        config = self.checkpoint
        if config is None or done.step == done.last_checkpoint_step:
            return False
        by_steps = config.every_steps and done.step % config.every_steps == 0
        by_time = config.every_seconds and done.training_seconds - done.last_checkpoint_seconds >= config.every_seconds
        return bool(by_steps or by_time)

    def used_up(self, done: Position) -> bool:
        """Whether the budget's steps or seconds are."""
        out_of_steps = self.total_steps is not None and done.step >= self.total_steps
        return out_of_steps or (self.budget.seconds is not None and done.training_seconds >= self.budget.seconds)

    def end(self, done: Position) -> Stop | None:
        """Why the run is over; None while there is work left."""
        target, loss = self.budget.target_loss, done.validation_loss
        if target is not None and loss is not None and loss < target:
            return Stop.TARGET
        return Stop.BUDGET if self.used_up(done) else None
