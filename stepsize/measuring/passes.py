"""One pass of the user's model with other tensors in place of its own, leaving no trace in it or the generators."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fw
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointFunction

from stepsize.errors import MeasurementError
from stepsize.measuring.tables import StandIn

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


def forward_pass(
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
    tangents silently), attention takes the math kernels (the fused ones have no forward mode), and what an autograd
    function without a forward-mode formula does is watched.

    Raises: MeasurementError where such a function reads a tensor with a tangent.
    """
    now = Generators.capture(generators.device)
    with ExitStack() as stack:
        stack.callback(now.restore)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_without_fused_encoder())
        stack.enter_context(_without_checkpoints())
        stack.enter_context(_watched_functions())
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


class _ReadsNoTangent(TorchFunctionMode):
    """Forward mode is off within an autograd function, so that a tangent read there is lost without a word."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with fw._set_fwd_grad_enabled(True):  # or nothing here has a tangent to see
            lost = any(map(_carries_tangent, tree_leaves((args, kwargs))))
        if lost:
            raise MeasurementError(
                f"forward mode stops at the autograd function {self.name}, which has no jvp and reads what the step "
                'changes; give it one, or take method="secant", which needs none'
            )
        return func(*args, **(kwargs or {}))


def _carries_tangent(value: Any) -> bool:
    if isinstance(value, StandIn):  # of a table that moves
        return True
    return isinstance(value, Tensor) and fw.unpack_dual(value).tangent is not None


@contextmanager
def _watched_functions() -> Iterator[None]:
    """Torch refuses a function without `jvp` where a tangent is passed to it, but not where it reads one by itself."""
    original = vars(Function)["apply"]

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        watched = fw._current_level >= 0 and cls.jvp is Function.jvp
        with _ReadsNoTangent(cls.__name__) if watched else nullcontext():
            return original.__get__(None, cls)(*args, **kwargs)

    Function.apply = classmethod(apply)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        Function.apply = original
