"""AlgoPerf's interface in small: `algoperf.spec`, workloads that implement it, and the loop that calls a submission.

Written after mlcommons/algorithmic-efficiency (`algoperf/spec.py`, `submission_runner.py`); times are not kept.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import inspect
import io
import itertools
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = dict[str, Any]


class LossType(enum.Enum):
    SOFTMAX_CROSS_ENTROPY = 0
    SIGMOID_CROSS_ENTROPY = 1
    MEAN_SQUARED_ERROR = 2
    CTC_LOSS = 3
    MEAN_ABSOLUTE_ERROR = 4


class ForwardPassMode(enum.Enum):
    TRAIN = 0
    EVAL = 1


class TrainingCompleteError(Exception):
    pass


def submission_module(patch: pytest.MonkeyPatch) -> Any:
    """The submission, imported as the harness imports it: from a path, beside a package `algoperf`."""
    package, spec = types.ModuleType("algoperf"), types.ModuleType("algoperf.spec")
    for each in (LossType, ForwardPassMode, TrainingCompleteError):
        setattr(spec, each.__name__, each)
    package.spec = spec  # pyright: ignore[reportAttributeAccessIssue]
    patch.setitem(sys.modules, "algoperf", package)
    patch.setitem(sys.modules, "algoperf.spec", spec)
    name = "stepsize/examples/algoperf_submission.py".removesuffix(".py").replace("/", ".")
    patch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module(name)
    patch.delitem(sys.modules, name)  # not left behind for tests without the package
    return found


class Workload:
    """What a submission may call of a workload."""

    loss_type = LossType.SIGMOID_CROSS_ENTROPY
    step_hint = 150
    rows = 64
    features = 8

    def __init__(self) -> None:
        self.metrics_logger: Any = None
        self.model_params_types: Any = None

    def init_model_fn(self, rng: int) -> tuple[nn.Module, None]:
        torch.manual_seed(rng)
        return self.build().to(self.dtype), None

    dtype = torch.float32

    def build(self) -> nn.Module:
        raise NotImplementedError

    def batch(self, generator: torch.Generator) -> Batch:
        raise NotImplementedError

    def per_example(self, labels: Tensor, logits: Tensor) -> Tensor:
        raise NotImplementedError

    def call(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["inputs"])

    def input_queue(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.batch(generator)

    def model_fn(  # noqa: PLR0917
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: Batch,
        model_state: Any,
        mode: ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
    ) -> tuple[Tensor, None]:
        assert model_state is None
        training = mode is ForwardPassMode.TRAIN
        assert training or not update_batch_norm
        params.train(training)
        with contextlib.nullcontext() if training else torch.no_grad():
            return self.call(params, augmented_and_preprocessed_input_batch), None

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        losses = self.per_example(label_batch, logits_batch)
        if mask_batch is not None:
            losses *= mask_batch
        valid = torch.as_tensor(losses.numel()) if mask_batch is None else mask_batch.sum()
        return {"summed": losses.sum(), "n_valid_examples": valid, "per_example": losses}

    def evaluate(self, model: nn.Module, *, batches: int = 20) -> float:
        """Mean loss on rows of its own, the weights and buffers being those that answer."""
        total = valid = 0.0
        for batch in itertools.islice(self.input_queue(10_000), batches):
            logits, _ = self.model_fn(model, batch, None, ForwardPassMode.EVAL, None, update_batch_norm=False)
            found = self.loss_fn(batch["targets"], logits, batch.get("weights"))
            total, valid = total + float(found["summed"]), valid + float(found["n_valid_examples"])
        return total / valid


class DropoutAndNorm(nn.Module):
    """An MLP that takes its dropout rate at the call, as AlgoPerf's models do."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(features, 32), nn.BatchNorm1d(32), nn.Linear(32, 1)

    def forward(self, x: Tensor, dropout_rate: float) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x)))
        return self.last(functional.dropout(hidden, dropout_rate, self.training))


class PartsInAList(nn.Module):
    """A table whose parts are read from a plain list, as AlgoPerf's DLRM does, or as attributes."""

    def __init__(self, features: int, *, plain: bool = True) -> None:
        super().__init__()
        self.parts = []
        for index in range(4):
            part = nn.Parameter(torch.randn(5, 6))
            self.register_parameter(f"part_{index}", part)
            self.parts.append(part)
        self.plain = plain
        self.last = nn.Sequential(nn.Linear(6 + features, 16), nn.ReLU(inplace=True), nn.Linear(16, 1))

    def forward(self, x: Tensor, dropout_rate: float) -> Tensor:
        ids = (x[:, 0] * 7).round().to(torch.int32) % 20
        table = torch.cat(self.parts if self.plain else [getattr(self, f"part_{index}") for index in range(4)])
        return self.last(functional.dropout(torch.cat([table[ids], x], dim=1), dropout_rate, self.training))


class Clicks(Workload):
    """Rare-ish clicks of a teacher; a tenth of the rows is padding that the mask hides."""

    def build(self) -> nn.Module:
        return DropoutAndNorm(self.features)

    def batch(self, generator: torch.Generator) -> Batch:
        x = torch.randn(self.rows, self.features, generator=generator, dtype=self.dtype)
        logit = 2.0 * x[:, 0] * x[:, 1] + x[:, 2] - 1.0
        clicked = torch.rand(self.rows, generator=generator, dtype=self.dtype) < torch.sigmoid(logit)
        weights = (torch.rand(self.rows, generator=generator) < 0.9).to(self.dtype)
        targets = torch.where(weights > 0, clicked.to(self.dtype), 99.0)
        return {"inputs": x, "targets": targets.unsqueeze(1), "weights": weights}

    def call(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["inputs"], dropout_rate=0.1)

    def per_example(self, labels: Tensor, logits: Tensor) -> Tensor:
        z, y = logits.reshape(-1), labels.reshape(-1)
        return -(y * functional.logsigmoid(z) + (1 - y) * functional.logsigmoid(-z))


class Tokens(Workload):
    """Sequences of tokens, classes last, with a mask of integers and no BatchNorm; the targets are inputs, too."""

    loss_type = LossType.SOFTMAX_CROSS_ENTROPY
    rows, length, classes = 16, 12, 11

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Embedding(self.classes, 16), nn.ReLU(), nn.Linear(16, self.classes))

    def batch(self, generator: torch.Generator) -> Batch:
        tokens = torch.randint(self.classes, (self.rows, self.length + 1), generator=generator)
        tokens[:, 1:] = torch.where(tokens[:, 1:] > 4, (2 * tokens[:, :-1] + 1) % self.classes, tokens[:, 1:])
        lengths = torch.randint(1, self.length + 1, (self.rows, 1), generator=generator)
        weights = (torch.arange(self.length) < lengths).long()
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}

    def per_example(self, labels: Tensor, logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits.transpose(-2, -1), labels, reduction="none")


class Prices(Workload):
    """Regression without a mask."""

    loss_type = LossType.MEAN_SQUARED_ERROR

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(self.features, 16), nn.Tanh(), nn.Linear(16, 1))

    def batch(self, generator: torch.Generator) -> Batch:
        x = torch.randn(self.rows, self.features, generator=generator, dtype=self.dtype)
        noise = torch.randn(self.rows, generator=generator, dtype=self.dtype)
        return {"inputs": x, "targets": (x[:, 0].sin() + x[:, 1] + 0.3 * noise).unsqueeze(1)}

    def per_example(self, labels: Tensor, logits: Tensor) -> Tensor:
        return (logits - labels).square().mean(1)


def run_submission(
    submission: Any, workload: Workload, *, seed: int = 0, steps: int | None = None, resume: int | None = None
) -> tuple[nn.Module, dict[str, Any], int]:
    """What the harness does with a submission: the model at the end, the optimizer's state, and the steps made.

    With `resume` the harness is killed after so many steps and goes on from its checkpoint, with a new input queue.
    """
    model, model_state = workload.init_model_fn(seed)
    queue, state = workload.input_queue(seed), submission.init_optimizer_state(workload, model, None, None, seed)
    takes_train_state = "train_state" in inspect.signature(submission.update_params).parameters
    step, complete = 0, False
    while not complete and step != steps:
        batch = submission.data_selection(workload, queue, state, model, model_state, None, step, seed)
        try:
            state, model, model_state = submission.update_params(
                workload=workload,
                current_param_container=model,
                current_params_types=workload.model_params_types,
                model_state=model_state,
                hyperparameters=None,
                batch=batch,
                loss_type=workload.loss_type,
                optimizer_state=state,
                eval_results=[],
                global_step=step,
                rng=seed,
                **({"train_state": types.MappingProxyType({})} if takes_train_state else {}),
            )
        except TrainingCompleteError:
            complete = True
            continue
        step += 1
        if step == resume:
            model, state, queue = _restored(submission, workload, model, state, step)
    state, model, model_state = submission.prepare_for_eval(
        workload=workload,
        current_param_container=model,
        current_params_types=workload.model_params_types,
        model_state=model_state,
        hyperparameters=None,
        loss_type=workload.loss_type,
        optimizer_state=state,
        eval_results=[],
        global_step=step,
        rng=seed,
    )
    return model, state, step


def _restored(
    submission: Any, workload: Workload, model: nn.Module, state: dict[str, Any], step: int
) -> tuple[nn.Module, dict[str, Any], Iterator[Batch]]:
    """Model and state from the bytes of a checkpoint, in new objects, and a queue that begins anew."""
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "state": {key: part.state_dict() for key, part in state.items()}}, saved)
    saved.seek(0)
    found = torch.load(saved, weights_only=True)
    model, _ = workload.init_model_fn(step)
    model.load_state_dict(found["model"])
    state = submission.init_optimizer_state(workload, model, None, None, step)
    for key, part in state.items():
        part.load_state_dict(found["state"][key])
    return model, state, workload.input_queue(step)
