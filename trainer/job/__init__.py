"""One run: put together, resumed, observed and stopped.

For example:

    stop = train(load_config("config.toml"), "RUN", console=Console())
    raise SystemExit(stop.exit_code)
"""

from __future__ import annotations

from trainer.job.daemon import train
from trainer.job.device import step_clock
from trainer.job.learner import EVALUATION_BATCH_ROWS, Learner, model_columns
from trainer.job.training_state import TrainingState, open_training

__all__ = [
    "EVALUATION_BATCH_ROWS",
    "Learner",
    "TrainingState",
    "model_columns",
    "open_training",
    "step_clock",
    "train",
]
