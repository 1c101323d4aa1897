"""A run opened to be used: the weights of one of its checkpoints, and how the rows that they answer to are encoded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.addresses import is_remote, shown_path, uri_of
from pipeline.errors import DamagedRowsError, InputError, StorageError
from pipeline.schema import LogFormat
from pipeline.shards import Manifest
from trainer.config import Config, ConfigError, config_errors, load_config
from trainer.console import Console
from trainer.job import Learner, model_columns
from trainer.learner import Evaluation
from trainer.records import Checkpoint, checkpoint_steps, load_best, load_latest
from trainer.serving.tables import RunTables
from trainer.serving.values import predict_values

if TYPE_CHECKING:
    import pyarrow as pa

    DataFrame = Any  # of pandas, which need not be there


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """The weights of a checkpoint, loaded."""

    run: Path
    config: Config
    """As the run was started or last continued with; `config.data.path` may have moved since."""
    log_format: LogFormat
    """Of the lines that the run's data was made of."""
    checkpoint: Checkpoint
    """Where the weights are from."""
    learner: Learner

    @property
    def step(self) -> int:
        return self.checkpoint.step

    @cached_property
    def model(self) -> nn.Module:
        """A plain module on the host, in evaluation mode, a copy of the weights that answer: the averaged ones, if the
        run averages; with the shift of `[loss]`, if it has one.

        Logits (R,) of dense (R, D) float32 and ids (S, R).
        """
        with self.learner.answering() as answering:
            return copy.deepcopy(plain_model(answering))

    @property
    def records(self) -> RunTables:
        """Steps, α*, evaluations and events as Arrow tables."""
        return RunTables(self.run)

    def predict(
        self,
        values: Iterable[str] | pa.Table | DataFrame | tuple[Tensor, Tensor],
        *,
        labelled: bool | None = None,
    ) -> NDArray[np.float32]:
        """Probabilities (N,) of a click: of lines of the log, with or without the label (`labelled`; None: by the
        first of them); of a table with its raw columns, whose label is not looked at; or of tensors (dense, ids) as
        `pipeline.open_pairs` gives them.

        NaN for a line that cannot be used. Raises: InputError for what is nothing of the kind.
        """
        return predict_values(self.learner, self.log_format, values, labelled=labelled)

    def evaluate(
        self,
        split: str = "validation",
        *,
        rows: int | None = None,
        data: str | None = None,
        manifest: Manifest | None = None,
    ) -> Evaluation:
        """The weights on a split of the run's data, or of the folder `data`; on its first `rows` rows.

        `manifest` is that of the folder, if it is loaded already. Raises: as `evaluate_run`.
        """
        if data is None:
            refuse_lost_path(self.config.data.path, self.run)
        folder = self.config.data if data is None else replace(self.config.data, path=data)
        with config_errors():
            evaluation = replace(self.config.eval, rows=rows)
        manifest = manifest or Manifest.load(folder.path)
        if model_columns(manifest.format) != model_columns(self.log_format):
            raise ConfigError(
                f"{folder.path}: has other columns or bucket sizes than {self.run} was trained on; give data of the "
                "same format"
            )
        with damage_explained():
            return self.learner.evaluate(folder, manifest, evaluation, split)


def open_run(
    run: str | Path, *, checkpoint: int | None = None, best: bool = False, manifest: Manifest | None = None
) -> OpenedRun:
    """The newest whole checkpoint of the run directory `run`, or its `best` one by validation loss, or the one of the
    step `checkpoint`.

    `manifest` is that of the data folder on whose rows the weights are to be used, if they are to be used on one.
    Without it the format of lines is the one that the checkpoint tells of, or, as those of earlier versions do not,
    that of the data folder that the run trains on.
    Raises: ConfigError for a missing run or checkpoint, or rows that the model cannot read; InputError as `load_best`;
    StorageError if all checkpoints are damaged.
    """
    run = Path(run)
    config = run_config(run)
    found = _checkpoint(run, checkpoint, best=best)
    log_format, where = (manifest.format, manifest.folder) if manifest else _format_of(run, config, found)
    if found.state["data"]["columns"] != model_columns(log_format):
        raise ConfigError(
            f"{where}: has other columns or bucket sizes than {run} was trained on; give data of the same format"
        )
    learner = Learner.build(config, log_format)
    learner.load(found)
    for key in learner.changed_factories(found):
        Console().warn(f"the file of {key} has changed since {found.path.name} was saved; what it answers may have too")
    return OpenedRun(run=run, config=config, log_format=log_format, checkpoint=found, learner=learner)


@contextmanager
def damage_explained(other: str = "") -> Iterator[None]:
    """Within it damaged rows are answered by what helps whoever scores them, or what `other` adds to that; settings of
    training do not."""
    try:
        yield
    except DamagedRowsError as error:
        raise StorageError(
            f"{error.what}; restore it from a copy (`alphastream verify` on the data lists all that is damaged)"
            f"{other}, or preprocess its log again"
        ) from error


def plain_model(model: nn.Module) -> nn.Module:
    """The model on the host, in evaluation mode, of ordinary parameters that share the memory of host weights."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, object] = {}
    for tensor in tensors:
        # A view is read, which brings a table that is kept by rows up to date and makes an ordinary tensor of it.
        weight = tensor.detach().view(tensor.shape).cpu()
        memo[id(tensor)] = nn.Parameter(weight, requires_grad=False) if isinstance(tensor, nn.Parameter) else weight
    return copy.deepcopy(model, memo).eval()


def run_config(run: Path) -> Config:
    """The settings of a run.

    Raises: ConfigError if `run` is not the directory of one.
    """
    refuse_remote(run)
    if not (run / "config.toml").is_file():
        raise ConfigError(f"{run}: is not a run directory; give the folder that `alphastream train --run` wrote")
    return load_config(run / "config.toml")


def refuse_remote(run: Path) -> None:
    """Raises: ConfigError for a URI in place of a run directory."""
    if uri_of(run) is not None:
        raise ConfigError(f"{shown_path(run)}: a run is read from a local folder; copy it to one and name that")


def refuse_lost_path(path: str, run: Path) -> None:
    """Earlier versions kept a relative data.path as it was given, which leads nowhere from another folder."""
    if not is_remote(path) and not Path(path).is_absolute() and not Path(path).exists():
        raise ConfigError(
            f"{run / 'config.toml'}: data.path is {path!r}, relative to where the run was started; use it from "
            "there, or give --data"
        )


def _checkpoint(run: Path, step: int | None, *, best: bool) -> Checkpoint:
    if step is not None and (isinstance(step, bool) or not isinstance(step, Integral)):
        raise ConfigError(f"checkpoint is {step!r}; give the number of its step")
    if step is not None and best:
        raise ConfigError("the best checkpoint and one of a given step are asked for; choose one of them")
    if best:
        return load_best(run)
    found = load_latest(run, wanted=lambda each: step in (None, each))
    if found is not None:
        return found
    if step is None:
        raise ConfigError(f"{run}: has no checkpoint yet; wait for its first, or train it longer")
    there = checkpoint_steps(run)
    raise ConfigError(
        f"{run}: has no checkpoint of step {step}; "
        + (f"it has those of {', '.join(map(str, there))}" if there else "wait for its first, or train it longer")
    )


def _format_of(run: Path, config: Config, checkpoint: Checkpoint) -> tuple[LogFormat, object]:
    """The format of the lines that the run learns from, and where it stands."""
    stored = checkpoint.state.get("format")
    if stored is not None:
        return LogFormat.from_dict(stored), checkpoint.path
    refuse_lost_path(config.data.path, run)
    try:
        manifest = Manifest.load(config.data.path)
        return manifest.format, manifest.folder
    except InputError as error:
        raise ConfigError(
            f"{error}; checkpoints of an earlier version do not tell how their lines are encoded, so the data folder "
            "is needed: give --data"
        ) from None
