"""What is done with a trained model: a run is opened, evaluated, asked and exported.

For example:

    opened = open_run("RUN")
    print(opened.step, evaluate_run("RUN", split="test", rows=None, data=None))
"""

from __future__ import annotations

from trainer.serving.evaluating import evaluate_run
from trainer.serving.export import export_run
from trainer.serving.opened import OpenedRun, open_run
from trainer.serving.predicting import Predicted, predict_run
from trainer.serving.tables import RunTables
from trainer.serving.training import TrainedRun, train_run

__all__ = [
    "OpenedRun",
    "Predicted",
    "RunTables",
    "TrainedRun",
    "evaluate_run",
    "export_run",
    "open_run",
    "predict_run",
    "train_run",
]
