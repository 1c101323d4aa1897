"""What a run is made of: the model and what moves it, its stream of rows, and the policy with its measurements."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from pipeline.device import DataConfig, ModelInputs, open_feed, open_rows
from pipeline.schema import LogFormat
from pipeline.shards import Manifest
from stepsize.losses import BCEWithLogits
from stepsize.policies import make_policy
from stepsize.worker import StepSizeWorker
from trainer.config import Config, ConfigError, config_errors, load_config
from trainer.learner import (
    Evaluation,
    ModelConfig,
    build_average,
    build_model,
    build_optimizer,
    count_parameters,
    evaluate,
    evaluation_mode,
    learning_rate,
    scheduled_rate,
)
from trainer.loop import EvalConfig, Position
from trainer.records import load_latest, random_state, restore_random_state, save_checkpoint, seed_generators
from trainer.step import first_rows

GIGABYTE = 1_000_000_000
Tensors = Mapping[str, Mapping[str, torch.Tensor]]


class Learner:
    """The model and what moves it: the optimizer and, where asked for, the average of the weights."""

    def __init__(self, config: Config, log_format: LogFormat) -> None:
        """Raises: ConfigError for a model or an optimizer that cannot be made, alone or of this size."""
        config = config.resolved()
        self.device, self.table_rows = _device(), cast(int, config.model.table_rows)
        features = {"dense_features": len(log_format.dense), "sparse_features": len(log_format.sparse)}
        _refuse_too_large(config.model, features)
        seed_generators(config.data.seed)
        self.model = build_model(config.model, **features, seed=config.data.seed).to(self.device)
        with config_errors():
            self.optimizer = build_optimizer(config.optimizer, self.model)
        self.average = build_average(config.optimizer, self.model)

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The weights, and their average where there is one, as a checkpoint holds them; no copies."""
        return {"model": self.model.state_dict()} | ({"average": self.average.state_dict()} if self.average else {})

    def load_learner(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Puts weights, average and optimizer where a checkpoint has them."""
        self.model.load_state_dict(tensors["model"])
        if self.average is not None:
            self.average.load_state_dict(tensors["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def finite(self) -> bool:
        """Whether every weight is a finite number."""
        largest = (torch.linalg.vector_norm(weight.detach(), math.inf) for weight in self.model.parameters())
        return all(math.isfinite(value) for value in largest)

    def evaluate(
        self,
        data: DataConfig,
        manifest: Manifest,
        evaluation: EvalConfig,
        split: str,
        *,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """The weights that answer (averaged ones if the run averages) on `split`, or on its rows until `stopping`.

        Raises: as `pipeline.device.open_rows`.
        """
        batches = open_rows(
            data,
            manifest,
            table_rows=self.table_rows,
            device=self.device,
            split=split,
            batch_rows=evaluation.batch_rows,
            limit_rows=evaluation.rows,
        )
        averaged = self.average.applied() if self.average else nullcontext()
        with evaluation_mode(self.optimizer), averaged:
            return evaluate(self.model, _until(batches, stopping), split=split)


class Parts(Learner):
    """Everything that a step takes part in: a learner, the stream it learns from, the policy and its worker."""

    def __init__(self, config: Config, manifest: Manifest, stack: ExitStack) -> None:
        """`manifest` is that of config.data.path.

        Raises: ConfigError and InputError for settings that cannot be used, alone or together.
        """
        config, self.manifest = config.resolved(), manifest
        self.data, self.splits = data_identity(manifest), _evaluated_splits(config, manifest)
        with config_errors():
            # first what is quick to refuse: the model can be large
            table_rows = cast(int, config.model.table_rows)
            self.feed = stack.enter_context(open_feed(config.data, manifest, table_rows=table_rows, device=_device()))
            self.total_steps = config.budget.total_steps(self.feed.steps_per_epoch)
            scheduled_rate(config.schedule, step=0, total_steps=self.total_steps, peak=1.0)
            super().__init__(config, manifest.format)
            self.peak = learning_rate(self.optimizer)
            self.policy = make_policy(config.stepsize, initial_rate=self.peak, total_steps=self.total_steps)
            self.worker = StepSizeWorker(
                self.model,
                self.optimizer,
                BCEWithLogits(),
                config.stepsize.measuring,
                take_rows=first_rows,
            )
        stack.callback(self.worker.close)

    def save(self, run: Path, position: Position, records: Mapping[str, int], *, keep: int) -> Path:
        """Writes a checkpoint of everything that the next step depends on, and where the records stood."""
        state = {
            "position": asdict(position),
            "data": self.data,
            "total_steps": self.total_steps,
            "feed": self.feed.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "policy": self.policy.state_dict(),
            "worker": self.worker.state_dict(),
            "random": random_state(),
            "records": records,
        }
        return save_checkpoint(run, position.step, tensors=self.tensors(), state=state, keep=keep)

    def load(self, tensors: Tensors, state: Mapping[str, Any], *, where: Path) -> Position:
        """Puts everything back where `save` found it; `where` is the run, for errors.

        Raises: ConfigError where the run was trained on other rows.
        """
        if state["data"] != self.data:
            raise ConfigError(
                f"{where}: was trained on other rows than data.path holds now; give the data folder it was started "
                "with, or another --run"
            )
        self.load_learner(tensors, state)
        self.feed.load_state_dict(state["feed"])
        self.policy.load_state_dict(state["policy"])
        self.worker.load_state_dict(state["worker"])
        restore_random_state(state["random"])
        return Position(**state["position"])


def evaluate_run(run: Path, *, split: str, rows: int | None, data: str | None) -> tuple[int, Evaluation]:
    """The newest whole checkpoint of `run` on a split of its data, or of the folder `data`; with the checkpoint's step.

    Raises: ConfigError where there is no run, checkpoint or such split; StorageError where all checkpoints are damaged.
    """
    if not (run / "config.toml").is_file():
        raise ConfigError(f"{run}: is no run directory; give the folder that `alphastream train --run` wrote")
    config = load_config(run / "config.toml")
    folder = config.data if data is None else replace(config.data, path=data)
    with config_errors():
        evaluation = replace(config.eval, rows=rows)
    manifest = Manifest.load(folder.path)
    found = load_latest(run)
    if found is None:
        raise ConfigError(f"{run}: has no checkpoint yet; wait for its first, or train it longer")
    if found.state["data"]["columns"] != _columns(manifest.format):
        raise ConfigError(
            f"{manifest.folder}: has other columns than {run} was trained on; give data of the same format"
        )
    learner = Learner(config, manifest.format)
    learner.load_learner(found.tensors, found.state)
    return found.step, learner.evaluate(folder, manifest, evaluation, split)


def data_identity(manifest: Manifest) -> dict[str, Any]:
    """What tells one training split from another wherever it lies: its columns and the content of its shards."""
    content = hashlib.sha256("".join(shard.sha256 for shard in manifest.splits["train"].shards).encode())
    return {"columns": _columns(manifest.format), "train": content.hexdigest()}


def _evaluated_splits(config: Config, manifest: Manifest) -> list[str]:
    """The splits to evaluate on, in order, less those that the data has no rows for."""
    splits = [name for name in config.eval.splits if manifest.splits[name].rows]
    if config.budget.target_loss is not None and "validation" not in splits:
        raise ConfigError(
            f"budget.target_loss is {config.budget.target_loss}, but there is no validation loss to compare; "
            "put 'validation' into eval.splits, and preprocess with rows for it"
        )
    return splits


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _columns(log_format: LogFormat) -> dict[str, Any]:
    values = log_format.to_dict()
    return {name: values[name] for name in ("dense", "sparse", "bucket_sizes")}


def _refuse_too_large(model: ModelConfig, features: Mapping[str, int]) -> None:
    """Says so before the system kills the process, or another one, for memory."""
    needed = 4 * count_parameters(model, **features)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise ConfigError(
            f"model.table_rows = {model.table_rows} and model.embedding_dim = {model.embedding_dim}: the weights alone "
            f"take {needed / GIGABYTE:,.0f} GB and this machine has {available / GIGABYTE:,.0f}; lower one of them"
        )


def _until(batches: Iterator[ModelInputs], stopping: Callable[[], bool]) -> Iterator[ModelInputs]:
    """`batches`, at least one, up to the one in which a signal came."""
    for batch in batches:
        yield batch
        if stopping():
            return
