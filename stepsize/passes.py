"""One pass of the user's model with other tensors in place of its own, leaving no trace in it or the generators."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointFunction

from stepsize.errors import MeasurementError

ForwardContext = Callable[[], AbstractContextManager[Any]]
"""Makes the context the user's forward runs in, such as `lambda: torch.autocast("cuda", torch.bfloat16)`."""


@dataclass(frozen=True)
class Generators:
    """The random states of the CPU and of one CUDA device at one moment."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def capture(cls, device: torch.device) -> Generators:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


class LastTrainingForward:
    """A forward pre-hook that remembers what the generators held when the model was last called with gradients on.

    The gradient that the optimizer applies was taken under that dropout mask, so B2's own numbers need it again.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generators: Generators | None = None

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        if torch.is_grad_enabled():
            self.generators = Generators.capture(self.device)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module whose parameters carry the user's names: what `DistributedDataParallel` or `torch.compile` wraps."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        else:
            return model


def refuse_scripted(model: nn.Module) -> None:
    """Raises MeasurementError for a model with `torch.jit` parts: nothing can take their own tensors' place."""
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        what = f"module {scripted[0]!r}" if scripted[0] else "the model"
        raise MeasurementError(f"{what} is scripted or traced by torch.jit; give the worker the model it was made from")


def run(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    substitutes: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    generators: Generators,
    context: ForwardContext = nullcontext,
) -> Tensor:
    """`model(*inputs)` with `substitutes` for its parameters, drawing what `generators` draw next.

    The model writes into clones of `buffers`; everything else is left as `undisturbed` leaves it.

    Raises: MeasurementError where the model does not return a floating-point tensor of logits.
    """
    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    with undisturbed(generators), context():
        logits = torch.func.functional_call(model, {**copies, **substitutes}, inputs)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise MeasurementError(
            f"the model returned {type(logits).__name__}; wrap it so that it returns its logits as one tensor"
        )
    return logits


@contextmanager
def undisturbed(generators: Generators) -> Iterator[None]:
    """Draw what `generators` draw next, then put the present state back.

    Meanwhile compiled parts and checkpointed ones run as written (compiled functions and reentrant checkpoints lose
    tangents silently) and attention takes the math kernels (the fused ones have no forward mode).
    """
    now = Generators.capture(generators.device)
    with ExitStack() as stack:
        stack.callback(now.restore)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_without_fused_encoder())
        stack.enter_context(_without_checkpoints())
        if "torch._dynamo" in sys.modules:  # only then can anything be compiled; importing it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        generators.restore()
        yield


@contextmanager
def _without_fused_encoder() -> Iterator[None]:
    """TransformerEncoderLayer and MultiheadAttention take a fused kernel without forward mode when no graph is made."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """A reentrant checkpoint is an autograd function that reads the parameters behind forward mode's back."""
    applied = CheckpointFunction.apply
    CheckpointFunction.apply = staticmethod(lambda function, _, *arguments: function(*arguments))
    try:
        yield
    finally:
        CheckpointFunction.apply = applied
