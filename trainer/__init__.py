"""DLRM training with α*: the only package that composes the other three.

Read `step` (one training step), `loop` (all of them) and `config` (what can be set) first; the rooms, from what the
user types to what learns:

    cli              `alphastream VERB`
    examples         a run trained and used from Python
    study, stall     many runs from one file; what bounds the speed of one
    serving          what is done with a trained model
    job, report      one run: put together, resumed, observed, stopped; its figures and tables
    learner          model, optimizers, averaged weights, schedules, evaluation
    records          what a run leaves on disk

From Python, with a folder that `alphastream preprocess` wrote:

>>> trained = train({"data": {"path": "data"}, "model": {"table_rows": 500}, "budget": {"steps": 6}}, "run", quiet=True)
>>> trained.reason
'the budget is reached'
>>> opened = open_run("run")
>>> opened.step, opened.model.training, opened.records.steps.num_rows
(6, False, 6)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.serving import OpenedRun, TrainedRun, open_run
    from trainer.serving import train_run as train

__all__ = ["OpenedRun", "TrainedRun", "open_run", "train"]


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("trainer.serving"), "train_run" if name == "train" else name)
