"""Whole training jobs on any number of ranks, for tests to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.shards import Manifest
from trainer.config import Config, config_from
from trainer.console import Console
from trainer.job import open_training, train
from trainer.job.ranks import WantedRows
from trainer.loop import Stop
from trainer.ranks import Ranks
from trainer.records import checkpoint_files

STEPS = 20


def config_of(folder: str, sections: dict[str, dict[str, Any]]) -> Config:
    """A small model on the data of `folder`, saved now and then; an odd batch, and a table whose rows no number of
    ranks divides."""
    values: dict[str, Any] = {
        "data": {"path": folder, "batch_rows": 61},
        "model": {"table_rows": 5003, "embedding_dim": 8, "bottom": [16, 8], "top": [16, 1]},
        "optimizer": {"average": "ema"},
        "stepsize": {"policy": "auto"},
        "budget": {"steps": STEPS},
        "eval": {"every_steps": 10, "splits": ["validation"]},
        "checkpoint": {"every_steps": 6},
        "metrics": {"port": -1},
    }
    for section, given in sections.items():
        values[section] = values.get(section, {}) | given
    return config_from(values, where="the test")


class Job(NamedTuple):
    """A run to begin, or to continue from its checkpoint of a step."""

    run: str
    sections: dict[str, dict[str, Any]]
    from_checkpoint: int | None = None


def trained(ranks: Ranks, folder: str, jobs: list[Job]) -> list[Stop]:
    """Each job in turn, to its end."""
    return [
        train(
            config_of(folder, job.sections),
            job.run,
            console=Console(quiet=True),
            from_checkpoint=job.from_checkpoint,
            ranks=ranks,
        )
        for job in jobs
    ]


def loaded(ranks: Ranks, folder: str, jobs: list[Job]) -> list[dict[str, Any]]:
    """What each job's checkpoint puts into this rank's training, as it would be saved, and which rows these are."""
    return [_loaded(ranks, folder, job) for job in jobs]


def _loaded(ranks: Ranks, folder: str, job: Job) -> dict[str, Any]:
    run = Path(job.run)
    with open_training(config_of(folder, job.sections), Manifest.load(folder), ranks=ranks) as state:
        found = state.newest(run, which=lambda step: step == job.from_checkpoint)
        assert found is not None
        files = list(checkpoint_files(*state.content(state.load(found, run=run), {})))
        wanted = WantedRows(state.learner.model, state.learner.optimizer)
        rows = {key: held for file in files for key, held in wanted.having(file).items()}
        tensors = {(file.name, name): value.clone() for file in files for name, value in file.tensors.items()}
    return {"tensors": tensors, "rows": rows}


def whole(found: list[dict[str, Any]]) -> dict[tuple[str, str], Tensor]:
    """The tensors of all ranks, rows put together; generators' states left out, which each rank has for itself."""
    names = [key for key in found[0]["tensors"] if not (key[0] == "state" and key[1].startswith("random"))]
    return {key: _put_together(found, key) if key in found[0]["rows"] else found[0]["tensors"][key] for key in names}


def _put_together(found: list[dict[str, Any]], key: tuple[str, str]) -> Tensor:
    parts = [one["tensors"][key] for one in found]
    tensor = torch.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    for one, part in zip(found, parts, strict=True):
        tensor[list(one["rows"][key].numbers)] = part
    return tensor
