"""A run's checkpoint on a split."""

from __future__ import annotations

from pathlib import Path

from pipeline.shards import Manifest
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
    if data is None:  # before anything large is read
        refuse_lost_path(run_config(run).data.path, run)
    manifest = None if data is None else Manifest.load(data)
    opened = open_run(run, best=best, manifest=manifest)
    return opened.step, opened.evaluate(split, rows=rows, data=data, manifest=manifest)
