"""What learns and how it is scored: model, optimizers, averaged weights, schedules, evaluation."""

from __future__ import annotations

from trainer.learner.averaging import WeightAverage, build_average
from trainer.learner.evaluation import Evaluation, evaluate
from trainer.learner.model import ModelConfig, build_model, count_parameters
from trainer.learner.optimizers import (
    OptimizerConfig,
    build_optimizer,
    evaluation_mode,
    learning_rate,
)
from trainer.learner.schedules import ScheduleConfig, scheduled_rate

__all__ = [
    "Evaluation",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "WeightAverage",
    "build_average",
    "build_model",
    "build_optimizer",
    "count_parameters",
    "evaluate",
    "evaluation_mode",
    "learning_rate",
    "scheduled_rate",
]
