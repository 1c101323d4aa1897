"""What learns and how it is scored: model, optimizers, precision, averaged weights, schedules, evaluation.

For example:

    model = build_model(ModelConfig(table_rows=1000), dense_features=13, sparse_features=26, seed=0)
    optimizer = build_optimizer(OptimizerConfig(name="nadamw"), model)
    print(evaluate(model, batches, split="validation").auc)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.learner.config import ModelConfig, OptimizerConfig, beside, load_preset
from trainer.learner.factory import source_hash
from trainer.learner.loss_config import LossConfig
from trainer.learner.schedules import ScheduleConfig, scheduled_rate

if TYPE_CHECKING:
    from trainer.learner.averaging import WeightAverage, build_average
    from trainer.learner.loss import ShiftedLogits, TrainedLoss, build_loss, weighed_targets
    from trainer.learner.model import build_model, check_model, count_parameters, rows_of_tables, table_moduli
    from trainer.learner.optimizers import build_optimizer, evaluation_mode, learning_rate
    from trainer.learner.precision import TrainingPrecision
    from trainer.learner.scoring import Evaluation, Evaluator, HostCopy, ProgressiveValidation, evaluate

__all__ = [
    "Evaluation",
    "Evaluator",
    "HostCopy",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProgressiveValidation",
    "ScheduleConfig",
    "ShiftedLogits",
    "TrainedLoss",
    "TrainingPrecision",
    "WeightAverage",
    "beside",
    "build_average",
    "build_loss",
    "build_model",
    "build_optimizer",
    "check_model",
    "count_parameters",
    "evaluate",
    "evaluation_mode",
    "learning_rate",
    "load_preset",
    "rows_of_tables",
    "scheduled_rate",
    "source_hash",
    "table_moduli",
    "weighed_targets",
]

_FILES = {
    "Evaluation": "scoring",
    "Evaluator": "scoring",
    "HostCopy": "scoring",
    "ProgressiveValidation": "scoring",
    "ShiftedLogits": "loss",
    "TrainedLoss": "loss",
    "TrainingPrecision": "precision",
    "WeightAverage": "averaging",
    "build_average": "averaging",
    "build_loss": "loss",
    "build_model": "model",
    "build_optimizer": "optimizers",
    "check_model": "model",
    "count_parameters": "model",
    "evaluate": "scoring",
    "evaluation_mode": "optimizers",
    "learning_rate": "optimizers",
    "rows_of_tables": "model",
    "table_moduli": "model",
    "weighed_targets": "loss",
}


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
