"""An AlgoPerf submission (PyTorch, self-tuning ruleset): NAdamW whose learning rate α* finds while it trains.

In a checkout of mlcommons/algorithmic-efficiency, with this library installed beside it:

    python submission_runner.py --framework=pytorch --tuning_ruleset=self --workload=criteo1tb \\
        --submission_path=stepsize/examples/algoperf_submission.py --data_dir=... --experiment_dir=...

The optimizer is that of the self-tuning baseline with the same moments and decay for every workload; the rate is the
policy's, from one first guess for all. Batches are the input queue's, in its order and each trained on once: the batch
after the one of a step probes it. The workload's own forward and loss are what is measured, so masks, dropout, batch
normalisation and autocast are what they are in training. Memory beside the optimizer's: a few earlier copies of the
weights, from which many steps are measured at once, and the batch that is read ahead.

The rate falls to zero at `workload.step_hint`; what comes then, up to three times the time limit, could change nothing
and is not asked for (`TrainingCompleteError`).

Refused: JAX, several devices, hyperparameters of the external ruleset, and losses that α* is not defined for (absolute
error, which has no curvature in the logits, and CTC, which torch cannot differentiate twice).
"""

# ruff: noqa: PLR0917
# (the harness calls some of these functions by position)

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from algoperf import spec  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn
from torch.optim import Optimizer

from stepsize import AutogradLoss, MeasurementError, RateController, StepSizeConfig
from stepsize.measuring import unwrapped

BETAS, EPS, WEIGHT_DECAY = (0.93266073836, 0.9955159689799007), 1e-8, 0.08121616522670176
"""Of AlgoPerf's self-tuning NAdamW."""
FIRST_GUESS = 1e-3
"""Bounds the steps that are taken before there is evidence; the rate that is found does not depend on it."""
CUDA_DELAY = 4
"""Steps after its own at which an estimate acts on CUDA, so that two runs of one seed are the same."""
PROBE = "alpha_star_probe"
"""Key of a selected batch under which the batch that probes its step lies."""
BATCH_SIZES = {
    "criteo1tb": 262_144,
    "fastmri": 32,
    "imagenet_resnet": 1024,
    "imagenet_resnet_gelu": 512,
    "imagenet_resnet_silu": 512,
    "imagenet_vit": 1024,
    "librispeech_conformer": 256,
    "librispeech_deepspeech": 256,
    "ogbg": 512,
    "wmt": 128,
    "mnist": 16,
    "cifar": 16_384,
    "finewebedu_lm": 64,
}
"""Of AlgoPerf's own baselines."""
NO_STEP_LENGTH = {
    "MEAN_ABSOLUTE_ERROR": "is linear in the model's outputs, so it has no curvature there",
    "CTC_LOSS": "cannot be differentiated twice in torch",
}
"""Loss types without an α*, and why."""


def get_batch_size(workload_name: str) -> int:
    """Rows of a batch of all devices together.

    Raises: ValueError for an unknown name, upon which the harness asks for the name that it derives from.
    """
    if workload_name not in BATCH_SIZES:
        raise ValueError(f"workload {workload_name!r} has no batch size here; known are {', '.join(BATCH_SIZES)}")
    return BATCH_SIZES[workload_name]


def init_optimizer_state(
    workload: spec.Workload,
    model_params: spec.ParameterContainer,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    rng: spec.RandomState,
) -> spec.OptimizerState:
    """The optimizer, what finds its rate, and the batch that was read ahead; the harness saves all three.

    Raises: MeasurementError, naming it, for what cannot work.
    """
    del model_state, rng
    if hyperparameters is not None:
        raise MeasurementError(
            "hyperparameters: this submission tunes itself and takes none; run it with --tuning_ruleset=self"
        )
    _refuse_other_containers(model_params)
    _refuse_loss(workload.loss_type)
    optimizer = _NAdamW(model_params.parameters(), lr=FIRST_GUESS, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    return {
        "optimizer": optimizer,
        "rate": _AlphaRate(workload, unwrapped(model_params), optimizer),
        "ahead": _ReadAhead(),
    }


def data_selection(
    workload: spec.Workload,
    input_queue: Iterable[dict[str, Any]],
    optimizer_state: spec.OptimizerState,
    current_param_container: spec.ParameterContainer,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    global_step: int,
    rng: spec.RandomState,
) -> dict[str, Any]:
    """The batch that probed the step before, and under `PROBE` the queue's next; nothing is changed but the queue."""
    del workload, current_param_container, model_state, hyperparameters, global_step, rng
    queue = iter(input_queue)
    ahead = optimizer_state["ahead"].batch
    batch = next(queue) if ahead is None else ahead
    return {**batch, PROBE: next(queue)}


def update_params(
    workload: spec.Workload,
    current_param_container: spec.ParameterContainer,
    current_params_types: spec.ParameterTypeTree,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    batch: dict[str, Any],
    loss_type: spec.LossType,
    optimizer_state: spec.OptimizerState,
    eval_results: list[tuple[int, float]],
    global_step: int,
    rng: spec.RandomState,
    train_state: dict[str, Any] | None = None,
) -> spec.UpdateReturn:
    """One step on `batch`, as long as the estimates so far say; its α* is measured on the batch that comes next.

    Raises: TrainingCompleteError after `workload.step_hint` steps, where the rate has fallen to zero.
    """
    del current_params_types, hyperparameters, loss_type, eval_results, train_state
    optimizer: Optimizer = optimizer_state["optimizer"]
    alpha: _AlphaRate = optimizer_state["rate"]
    if global_step >= workload.step_hint:
        raise spec.TrainingCompleteError
    if PROBE not in batch:
        raise MeasurementError("batch: has no rows to probe its step with; select it with this submission")
    train = {key: value for key, value in batch.items() if key != PROBE}
    optimizer.zero_grad()
    logits, new_state = alpha.forward(current_param_container, train, model_state, rng)
    losses = workload.loss_fn(label_batch=train["targets"], logits_batch=logits, mask_batch=train.get("weights"))
    loss = losses["summed"] / losses["n_valid_examples"]
    loss.backward()
    alpha.step(current_param_container, batch[PROBE], model_state, rng, step=global_step)
    optimizer_state["ahead"].batch = batch[PROBE]
    if workload.metrics_logger is not None and (global_step <= 100 or global_step % 500 == 0):
        logged = {"loss": loss.item(), "learning_rate": float(optimizer.param_groups[0]["lr"])}
        workload.metrics_logger.append_scalar_metrics(logged, global_step)
    return optimizer_state, current_param_container, new_state


def prepare_for_eval(
    workload: spec.Workload,
    current_param_container: spec.ParameterContainer,
    current_params_types: spec.ParameterTypeTree,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    loss_type: spec.LossType,
    optimizer_state: spec.OptimizerState,
    eval_results: list[tuple[int, float]],
    global_step: int,
    rng: spec.RandomState,
) -> spec.UpdateReturn:
    """Everything as it is: the weights that are trained are those that answer."""
    del workload, current_params_types, hyperparameters, loss_type, eval_results, global_step, rng
    return optimizer_state, current_param_container, model_state


def _refuse_other_containers(model: object) -> None:
    """Raises MeasurementError for what is no module, such as JAX's trees, and for one that several devices train."""
    if not isinstance(model, nn.Module):
        raise MeasurementError(
            f"model_params: {type(model).__name__} is not an nn.Module; this submission is for --framework=pytorch"
        )
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    devices = len(model.device_ids) if isinstance(model, nn.DataParallel) else 1
    if max(ranks, devices) > 1:
        raise MeasurementError(
            f"model_params: trained by {max(ranks, devices)} devices, each of which would find a rate of its own; run "
            "it on one (CUDA_VISIBLE_DEVICES=0)"
        )


def _refuse_loss(loss_type: spec.LossType) -> None:
    """Raises MeasurementError for a loss without an α*."""
    why = NO_STEP_LENGTH.get(loss_type.name)
    if why is not None:
        raise MeasurementError(f"loss_type: {loss_type.name} {why}, and α* needs it; train this workload otherwise")


@dataclass
class _ReadAhead:
    """The batch that probed the latest step and is trained on next; a restarted harness begins its queue anew."""

    batch: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state
        self.batch = None


class _WorkloadModel(nn.Module):
    """A workload's forward pass as a module of its own: called with a batch, the model's state and the step's seed.

    It is for measuring. AlgoPerf's DLRM keeps its table's parts in a plain list, past which no other weights can take
    their place, so within a call such lists hold what the parameters' attributes hold.
    """

    def __init__(self, module: nn.Module, forward: Callable[..., tuple[Tensor, Any]]) -> None:
        super().__init__()
        self.module = module
        self._forward = forward
        self._lists = tuple(_lists_of_parameters(module))

    def forward(self, batch: dict[str, Any], model_state: Any, rng: Any) -> Tensor:
        kept = [(owner, name, getattr(owner, name)) for owner, name, _ in self._lists]
        try:
            for owner, name, places in self._lists:
                setattr(owner, name, type(getattr(owner, name))(getattr(*place) for place in places))
            return self._forward(self.module, batch, model_state, rng)[0]
        finally:
            for owner, name, value in kept:
                setattr(owner, name, value)


def _lists_of_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, list[tuple[nn.Module, str]]]]:
    """Attributes that are plain lists or tuples of the model's parameters: owner, name, where each is registered."""
    registered = {
        id(parameter): (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) in (list, tuple) and value and all(id(item) in registered for item in value):
                yield module, name, [registered[id(item)] for item in value]


@dataclass(kw_only=True)
class _MaskedTargets:
    """Targets and mask as one tensor (R, T + M), a row's targets and then its mask, and back.

    float64 holds every class index and every float32 as it is. All batches of a workload have the same layout.
    """

    layout: tuple[Any, ...] | None = field(default=None, init=False)

    def packed(self, batch: dict[str, Any]) -> Tensor:
        """Raises: MeasurementError for a batch of another layout than the first."""
        targets, weights = batch["targets"], batch.get("weights")
        parts = [part for part in (targets, weights) if part is not None]
        layout = tuple((tuple(part.shape[1:]), part.dtype) for part in parts)
        if self.layout not in (None, layout):
            raise MeasurementError(
                f"batch: targets and weights are {layout} a row, and were {self.layout}; give rows of one kind"
            )
        self.layout = layout
        return torch.cat([part.detach().reshape(len(part), -1).double() for part in parts], dim=1)

    def unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Targets, and the mask or None."""
        assert self.layout is not None
        sizes = [math.prod(shape) for shape, _ in self.layout]
        targets, *weights = (
            part.reshape(len(packed), *shape).to(dtype)
            for part, (shape, dtype) in zip(packed.split(sizes, dim=1), self.layout, strict=True)
        )
        return targets, weights[0] if weights else None


class _AlphaRate:
    """Gives every step its rate and measures its α* with the workload's own forward and loss."""

    def __init__(self, workload: spec.Workload, module: nn.Module, optimizer: Optimizer) -> None:
        self._module, self._optimizer = module, optimizer
        loss_fn, model_fn = workload.loss_fn, workload.model_fn
        dropout = inspect.signature(model_fn).parameters.get("dropout_rate")
        required = {"dropout_rate": 0.0} if dropout is not None and dropout.default is inspect.Parameter.empty else {}
        targets = _MaskedTargets()

        def forward(model: nn.Module, batch: dict[str, Any], model_state: Any, rng: Any) -> tuple[Tensor, Any]:
            return model_fn(
                params=model,
                augmented_and_preprocessed_input_batch=batch,
                model_state=model_state,
                mode=spec.ForwardPassMode.TRAIN,
                rng=rng,
                update_batch_norm=True,
                **required,
            )

        def row_losses(logits: Tensor, packed: Tensor) -> Tensor:
            """(R,), whose mean is what is trained: the sum over what counts, divided by how much counts."""
            label, mask = targets.unpacked(packed)
            found = loss_fn(label_batch=label, logits_batch=logits, mask_batch=mask)
            rows = len(packed)
            return found["per_example"].reshape(rows, -1).sum(1) * rows / found["n_valid_examples"]

        self.forward, self._targets = forward, targets
        self._controller = RateController(
            _WorkloadModel(module, forward),
            optimizer,
            AutogradLoss(row_losses),
            StepSizeConfig(policy="auto", delay=CUDA_DELAY if next(module.parameters()).is_cuda else 0),
            total_steps=workload.step_hint,
        )

    def step(
        self, model: spec.ParameterContainer, probe: dict[str, Any], model_state: Any, rng: Any, *, step: int
    ) -> None:
        """Takes the optimizer's step at the policy's rate, measured on `probe` where the policy wants it.

        Raises: MeasurementError for another model than the one that was given first.
        """
        if unwrapped(model) is not self._module:
            raise MeasurementError("current_param_container: is another model than init_optimizer_state was given")
        inputs, targets = (probe, model_state, rng), self._targets.packed(probe)
        with self._controller.around_step(inputs, targets, step=step):
            self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything learned so far: JSON values, and the snapshots' tensors."""
        return self._controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._controller.load_state_dict(state)


class _NAdamW(Optimizer):
    """NAdamW as AlgoPerf defines it, for dense gradients. Step t, counted from 1, with g the gradient:

    θ ← θ(1 − lr·λ);  m ← β1·m + (1−β1)·g;  v ← β2·v + (1−β2)·g²
    θ ← θ − lr/(1−β1ᵗ) · (β1·m + (1−β1)·g) / (√v/√(1−β2ᵗ) + ε)
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
                state["step"] += 1
                first, second = state["first"], state["second"]
                parameter.mul_(1 - rate * group["weight_decay"])
                first.lerp_(gradient, 1 - beta1)
                second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                scale = second.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
                ahead = torch.lerp(first, gradient, 1 - beta1)
                parameter.addcdiv_(ahead, scale, value=-rate / (1 - beta1 ** state["step"]))
