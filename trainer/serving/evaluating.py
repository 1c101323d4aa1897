"""A run's checkpoint on a split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.shards import Manifest
from trainer.config import config_errors
from trainer.learner import Evaluation
from trainer.serving.opened import open_run, refuse_lost_path, run_config


def evaluate_run(
    run: Path, *, split: str, rows: int | None, data: str | None, best: bool = False
) -> tuple[int, Evaluation]:
    """The newest whole checkpoint of `run`, or its `best`, on a split of its data, or of the folder `data`; with the
    checkpoint's step.

    Raises: InputError as `load_best`; ConfigError for a missing run, checkpoint or split; StorageError if all
    checkpoints are damaged.
    """
    config = run_config(run)
    if data is None:
        refuse_lost_path(config.data.path, run)
    folder = config.data if data is None else replace(config.data, path=data)
    with config_errors():
        evaluation = replace(config.eval, rows=rows)
    manifest = Manifest.load(folder.path)
    opened = open_run(run, best=best, manifest=manifest)
    return opened.step, opened.learner.evaluate(folder, manifest, evaluation, split)
