"""What learns in a run: built from its settings, loaded from a checkpoint, scored on a split."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from pipeline.device import DataConfig, ModelInputs, open_rows
from pipeline.reads import ReadRetries
from pipeline.schema import LogFormat
from pipeline.shards import Manifest
from trainer.budget import EvalConfig
from trainer.config import Config, ConfigError, config_errors
from trainer.learner import (
    Evaluation,
    LossConfig,
    ModelConfig,
    ShiftedLogits,
    TrainingPrecision,
    WeightAverage,
    build_average,
    build_model,
    build_optimizer,
    check_model,
    count_parameters,
    evaluate,
    evaluation_mode,
    rows_of_tables,
    source_hash,
    table_moduli,
)
from trainer.ranks import ALONE, Ranks, held_rows
from trainer.records import Checkpoint, CheckpointFile, all_finite, seed_generators

GIGABYTE = 1_000_000_000

EVALUATION_BATCH_ROWS = 8192
"""Rows a forward pass of an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The model and what moves it: the optimizer and, if asked for, the average of the weights."""

    model: nn.Module
    optimizer: Optimizer
    average: WeightAverage | None
    table_rows: int | tuple[int, ...]
    """What buckets are reduced by, `mod`: one number, or one for each sparse column."""
    tables: int | tuple[int, ...]
    """Rows of the shared table, or of each feature's own: above the largest of its ids."""
    device: torch.device
    precision: TrainingPrecision
    """Of training; evaluations are in float32, as what is served."""
    ranks: Ranks = field(default_factory=lambda: ALONE)
    """Those that train it together."""
    seed: int = 0
    """Of the weights, and of what a rank of several draws at its steps."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What was trained, and so what is to be added to a logit that answers."""
    factories: Mapping[str, str] = field(default_factory=dict)
    """Key of each factory of the user's → SHA-256 of its file."""

    @classmethod
    def build(
        cls,
        config: Config,
        log_format: LogFormat,
        *,
        ranks: Ranks = ALONE,
        purpose: Literal["begin", "continue", "answer"] = "answer",
    ) -> Learner:
        """As `config` has it, before its first step, of `ranks` this one's part; seeds the global generators.

        A model of the user's own is checked as `check_model` does it where a run begins; to continue one, whether it
        can be called and measured; to answer, whether it can be called.
        Raises: ConfigError for a model or an optimizer that cannot be made, alone or of this size.
        """
        config, device = config.resolved(), training_device()
        features: dict[str, int] = {"dense_features": len(log_format.dense), "sparse_features": len(log_format.sparse)}
        sizes = log_format.bucket_sizes
        seed_generators(config.data.seed)
        with config_errors():
            described = config.model.of_columns(log_format.sparse)
            _refuse_too_large(described, features, sizes, ranks)
            model = build_model(described, **features, seed=config.data.seed, bucket_sizes=sizes, ranks=ranks)
            tables = rows_of_tables(described, sizes)
            if described.own:
                check_model(
                    model,
                    described,
                    **features,
                    table_rows=tables,
                    measured=purpose != "answer" and _measured_by_jvp(config),
                    begins=purpose == "begin",
                )
            model = model.to(device)
            optimizer = build_optimizer(config.optimizer, model)
        return cls(
            model=model,
            optimizer=optimizer,
            average=build_average(config.optimizer, model),
            table_rows=table_moduli(described),
            tables=tables,
            device=device,
            precision=TrainingPrecision(name=config.model.precision, device=device),
            ranks=ranks,
            seed=config.data.seed,
            loss=config.loss,
            factories={
                f"{name}.factory": source_hash(part.factory, part.factory_folder)
                for name, part in (("model", config.model), ("optimizer", config.optimizer))
                if part.factory is not None and part.factory_folder is not None
            },
        )

    def changed_factories(self, checkpoint: Checkpoint) -> list[str]:
        """Keys of the factories whose files are not what they were when `checkpoint` was saved."""
        then = checkpoint.state.get("factories", {})
        return [key for key, digest in self.factories.items() if then.get(key, digest) != digest]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The weights, and their average if there is one, as a checkpoint holds them; no copies."""
        return {"model": self.model.state_dict()} | ({"average": self.average.state_dict()} if self.average else {})

    def saved_bytes(self) -> int:
        """Bytes of weights, average and optimizer state as they are now; little of a checkpoint is anything else.

        Looks at their sizes alone. Many optimizers make their state at the first step. Of several ranks those of all.
        """
        held = (self.tensors(), list(self.optimizer.state.values()))
        tensors = {id(leaf): leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor)}
        elsewhere = 0
        for name, place in held_rows(self.model).items():
            moments = self.optimizer.state.get(self.model.get_parameter(name), {}).values()
            copies = [self.model.get_parameter(name), *(one for one in moments if isinstance(one, Tensor) and one.ndim)]
            copies += [] if self.average is None else copies[:1]
            elsewhere += sum((place.rows - place.held) * one.shape[1] * one.dtype.itemsize for one in copies)
        return elsewhere + sum(leaf.numel() * leaf.dtype.itemsize for leaf in tensors.values())

    def load(self, checkpoint: Checkpoint) -> None:
        """Puts weights, average and optimizer where the checkpoint has them."""
        try:
            self.model.load_state_dict(checkpoint.tensors["model"])
        except RuntimeError as error:
            if "model.factory" not in self.factories:
                raise
            text = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"model.factory makes another model than {checkpoint.path} was trained with ({text}); restore its file"
            ) from error
        if self.average is not None:
            self.average.load_state_dict(checkpoint.tensors["average"])
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])

    def finite(self) -> bool:
        """Whether every weight is a finite number."""
        weights = (weight.detach() for weight in self.model.parameters() if weight.numel())
        largest = [torch.linalg.vector_norm(weight, math.inf).double() for weight in weights]
        return bool(torch.stack(largest).isfinite().all())  # the only wait for the device

    def saved_finite(self, files: Iterable[CheckpointFile]) -> bool:
        """As `finite`, of the weights that are in these files of a checkpoint; in any thread, training may go on."""
        buffers = {name for name, _ in self.model.named_buffers()}
        (model,) = (file for file in files if file.name == "model")
        return all_finite(tensor for name, tensor in model.tensors.items() if name not in buffers)

    def evaluate(
        self,
        data: DataConfig,
        manifest: Manifest,
        evaluation: EvalConfig,
        split: str,
        *,
        stopping: Callable[[], bool] = lambda: False,
        interrupted: Callable[[], bool] = lambda: False,
        retries: ReadRetries | None = None,
    ) -> Evaluation:
        """The weights that answer (the averaged ones, if the run averages) on `split`, or on its rows until `stopping`,
        which is asked once a batch.

        `manifest` is that of data.path.
        Raises: as `pipeline.device.open_rows`, InterruptedWaitError once `interrupted` while rows are waited for.
        """
        batches = open_rows(
            data,
            manifest,
            table_rows=self.table_rows,
            device=self.device,
            split=split,
            batch_rows=EVALUATION_BATCH_ROWS,
            limit_rows=evaluation.rows,
            rank=self.ranks.rank,
            ranks=self.ranks.ranks,
            interrupted=interrupted,
            retries=retries,
        )
        with self.answering() as model:
            return evaluate(
                model,
                map(self.weighed, _until(batches, stopping)),
                split=split,
                negative_weight=self.negative_weight(manifest, split),
                whole=self.ranks.whole_batch,
            )

    def weighed(self, batch: ModelInputs) -> ModelInputs:
        """The batch as it is scored: without weights that [loss] has no use for."""
        return batch.weighed_by(None) if self.loss.sample_weights is False else batch

    def negative_weight(self, manifest: Manifest, split: str) -> float:
        """How many rows of the whole log one of label 0 of a split stands for, where it is scored."""
        return self.loss.evaluated_weight(manifest.negatives_kept if split == "train" else 1.0)

    @contextmanager
    def answering(self) -> Iterator[nn.Module]:
        """The model in evaluation mode with the weights that answer: the averaged ones, if the run averages.

        Its logits are those of the whole log, where rows of label 0 were left out and `loss` corrects by a shift.
        Afterwards mode and weights are what they were, to the bit.
        """
        averaged = self.average.applied() if self.average else nullcontext()
        training = self.model.training
        with evaluation_mode(self.optimizer), averaged:
            self.model.eval()
            try:
                yield ShiftedLogits(self.model, self.loss.shift) if self.loss.shift else self.model
            finally:
                self.model.train(training)


def training_device() -> torch.device:
    """The GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_columns(log_format: LogFormat) -> dict[str, Any]:
    """What two data folders must share for one model to read both."""
    values = log_format.to_dict()
    return {name: values[name] for name in ("dense", "sparse", "bucket_sizes")}


def _measured_by_jvp(config: Config) -> bool:
    return config.stepsize.policy != "none" and config.stepsize.measuring.method == "jvp"


def _refuse_too_large(
    model: ModelConfig, features: Mapping[str, int], bucket_sizes: Sequence[int], ranks: Ranks
) -> None:
    """Says so before the system kills the process, or another one, for memory; nearly all of it are tables."""
    needed = 4 * count_parameters(model, **features, bucket_sizes=bucket_sizes) // ranks.ranks
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        width = f"model.factory = {model.factory!r}" if model.own else f"model.embedding_dim = {model.embedding_dim}"
        raise ConfigError(
            f"model.table_rows = {model.table_rows} and {width}: the weights alone "
            f"take {needed / GIGABYTE:,.0f} GB and this machine has {available / GIGABYTE:,.0f}; make them fewer"
        )


def _until(batches: Iterator[ModelInputs], stopping: Callable[[], bool]) -> Iterator[ModelInputs]:
    """`batches`, at least one, up to the one in which a signal came."""
    for batch in batches:
        yield batch
        if stopping():
            return
