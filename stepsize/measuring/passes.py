"""One pass of the user's model with other tensors in place of its own, leaving no trace in it or the generators."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
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
from stepsize.losses import AutogradLoss, Loss, unweighted
from stepsize.measuring.forward_mode import TrueToReverse, weights_left_in_place
from stepsize.measuring.kept import Generators, TensorsApart, attributes_kept, contents_of, own_copy
from stepsize.measuring.survey import Survey
from stepsize.measuring.tables import StandIn
from stepsize.options import Precision

_measuring: ContextVar[bool] = ContextVar("measuring", default=False)
"""Whether the model is being measured: what watches it train looks away."""

ForwardContext = Callable[[], AbstractContextManager[Any]]
"""Makes the context the user's forward runs in, such as `lambda: torch.autocast("cuda", torch.bfloat16)`."""


class LastTrainingForward:
    """A forward pre-hook that remembers what the generators held when the model was last called with gradients on.

    The gradient that the optimizer applies was taken under that dropout mask, so B2's own numbers need it again.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generators: Generators | None = None

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        if torch.is_grad_enabled() and not _measuring.get():
            self.generators = Generators.capture(self.device, contents_of(module.named_modules()))


def unwrapped(model: nn.Module) -> nn.Module:
    """The module whose parameters carry the user's names: what `DistributedDataParallel`, `DataParallel` or
    `torch.compile` wraps."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        else:
            return model


def refuse_without_parameters(model: object) -> None:
    """Raises MeasurementError for what is no module, or one that has no parameters."""
    if not isinstance(model, nn.Module):
        name = getattr(model, "__name__", type(model).__name__)
        raise MeasurementError(f"model: {name} is not an nn.Module; give the model that the optimizer moves")
    if next(model.parameters(), None) is None:
        raise MeasurementError(
            f"model: {type(model).__name__} has no parameters, so no step moves it; give the model that is trained "
            "(a quantized one has none)"
        )


def refuse_sharded(model: nn.Module) -> None:
    """Raises MeasurementError for parameters of which this process holds a part only."""
    for name, parameter in model.named_parameters():
        kinds = {kind.__name__ for kind in type(parameter).__mro__}
        sharded = kinds & {"DTensor", "ShardedTensor", "FlatParameter"}
        if sharded or hasattr(parameter, "ds_id") or parameter.is_meta:
            what = min(sharded) if sharded else "on the meta device" if parameter.is_meta else "split by DeepSpeed"
            raise MeasurementError(
                f"parameter {name!r} is sharded ({what}), and forward mode loses what the step changes in it; measure "
                "a model that holds its parameters whole, such as under DistributedDataParallel"
            )
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise MeasurementError(
            "the model's parameters are sharded (FullyShardedDataParallel), and forward mode loses what the step "
            "changes in them; measure a model that holds them whole, such as under DistributedDataParallel"
        )


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
    live: Mapping[int, str] | None = None,
    detached: bool = True,
    survey: Survey | None = None,
    copies: Mapping[int, Tensor] | None = None,
    apart: TensorsApart | None = None,
) -> Tensor:
    """`model(*inputs)` with `substitutes` for its parameters, drawing what `generators` draw next.

    The model writes into clones of `buffers` and copies of `inputs`; everything else is left as `undisturbed` leaves
    it. Parameters without a substitute count as constants if `detached`, and the model's own `no_grad` holds in
    forward mode too. `live` has the ids and descriptions of parameters that must not be read but through their
    substitutes. `survey` is the model's, if there is one of this moment; `copies` are of parameters' present values,
    by id, where there are such; `apart` has what takes the place of other tensors in a pass beside training.

    Raises: MeasurementError where the model reads one of `live`, uses an operation whose forward mode is wrong, or
    does not return a floating-point tensor of logits.
    """
    survey = survey or Survey.of(model)
    written = {name: buffer.clone() for name, buffer in buffers.items()}
    others = {name: value for name, value in survey.parameters.items() if name not in substitutes} if detached else {}
    constants = {name: value.detach() for name, value in others.items()}
    hidden = {id(survey.parameters[name]) for name in substitutes}
    # With gradients on, the model takes the ways it takes in training; nothing here requires any.
    with (
        torch.enable_grad(),
        undisturbed(generators, survey.modules, shielded=hidden, copies=copies, apart=apart),
        weights_left_in_place(survey.modules),
        true_to_reverse(live or {}),
        context(),
    ):
        values = {**written, **constants, **substitutes}
        logits = torch.func.functional_call(model, values, own_copy(inputs), tie_weights=survey.shared)
    return as_logits(logits)


def plain_logits(
    model: nn.Module, inputs: tuple[Any, ...], *, generators: Generators, context: ForwardContext = nullcontext
) -> Tensor:
    """The model's logits as it stands, without a graph; all else is left as `forward_pass` leaves it."""
    buffers = {name: buffer.detach() for name, buffer in model.named_buffers()}

    def logits(*, detached: bool) -> Tensor:
        return forward_pass(
            model,
            inputs,
            substitutes={},
            buffers=buffers,
            generators=generators,
            context=context,
            detached=detached,
        ).detach()

    try:
        return logits(detached=True)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        return logits(detached=False)  # a model that takes gradients in its own parameters


def as_logits(logits: Any) -> Tensor:
    """`logits` as they are; raises MeasurementError for what is no floating-point tensor."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise MeasurementError(
            f"the model returned {type(logits).__name__}; wrap it so that it returns its logits as one tensor"
        )
    return logits


@contextmanager
def loss_undisturbed(
    loss: Loss, device: torch.device, live: Mapping[int, str], apart: TensorsApart | None = None
) -> Iterator[None]:
    """Whatever a loss of the user's own draws or changes is put back; the closed forms here do neither.

    `apart` has what takes the place of its tensors beside training.

    Raises: MeasurementError where it reads a parameter that the optimizer moves, described in `live`.
    """
    if not isinstance(unweighted(loss), AutogradLoss):
        yield
        return
    modules = loss_modules(loss)
    with ExitStack() as stack:
        fresh = set() if apart is None else stack.enter_context(apart.in_place())
        contents = contents_of(modules)
        now = Generators.capture(device, contents)
        stack.callback(now.restore)
        stack.enter_context(attributes_kept(modules, contents, buffers=True, shielded=fresh, apart=apart is not None))
        stack.enter_context(true_to_reverse(live))
        yield


def loss_modules(loss: Any) -> list[tuple[str, nn.Module]]:
    """The modules of a loss, and their parts, by path."""
    return [named for module in modules_of_loss(loss) for named in module.named_modules()]


def modules_of_loss(loss: Any) -> list[nn.Module]:
    """What a loss is made of, beneath the weights of rows."""
    loss = unweighted(loss)
    return modules_of(getattr(loss, "function", loss))


def modules_of(function: Any) -> list[nn.Module]:
    """The modules that `function` is, is a method of, holds in its closure or is a `partial` of."""
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _filled(cell)]
    seen = [function, getattr(function, "__self__", None), getattr(function, "func", None), *cells]
    return [item for item in seen if isinstance(item, nn.Module)]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def in_precision(precision: Precision, device: torch.device, context: ForwardContext) -> ForwardContext:
    """`context` with autocast within it where the measuring pass is to run in bfloat16."""
    if precision == "float32":
        return context

    @contextmanager
    def both() -> Iterator[None]:
        with context(), torch.autocast(device.type, torch.bfloat16):
            yield

    return both


TF32_EPS = 2.0**-10
"""Spacing of TF32 numbers relative to their size, as `torch.finfo(...).eps` is of other types."""


def coarsest_eps(z: Tensor, context: ForwardContext) -> float:
    """The coarsest relative spacing of the numbers that logits `z` of a pass within `context` were made of.

    That of their own type; of autocast's, to which products are rounded whatever the model returns; and of TF32, where
    a GPU may multiply float32 numbers so. Neither of the two touches float64.
    """
    eps = torch.finfo(z.dtype).eps
    if z.dtype is torch.float64:
        return eps
    kind = z.device.type
    with context():
        if torch.is_autocast_enabled(kind):
            eps = max(eps, torch.finfo(torch.get_autocast_dtype(kind)).eps)
        if kind == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32":
            eps = max(eps, TF32_EPS)
    return eps


@contextmanager
def true_to_reverse(live: Mapping[int, str]) -> Iterator[None]:
    """`TrueToReverse`, after which forward mode is switched on or off as it was."""
    enabled = torch._C._is_fwd_grad_enabled()
    try:
        with TrueToReverse(live):
            yield
    finally:
        torch._C._set_fwd_grad_enabled(enabled)


@contextmanager
def undisturbed(
    generators: Generators,
    modules: Sequence[tuple[str, nn.Module]] = (),
    *,
    shielded: Collection[int] = (),
    copies: Mapping[int, Tensor] | None = None,
    apart: TensorsApart | None = None,
) -> Iterator[None]:
    """Draw what `generators` draw next, then put the present state back, and every attribute of `modules`.

    Meanwhile compiled parts and checkpointed ones run as written (compiled functions and reentrant checkpoints lose
    tangents silently), attention takes the math kernels (the fused ones have no forward mode), and what an autograd
    function without a forward-mode formula does is watched. `shielded` and `copies` are those of `attributes_kept`,
    and `apart` has what takes the place of other tensors in a pass beside training.

    Raises: MeasurementError where such a function reads a tensor with a tangent.
    """
    with ExitStack() as stack:
        if apart is not None:
            shielded = {*shielded, *stack.enter_context(apart.in_place())}
        contents = contents_of(modules)
        now = Generators.capture(generators.device, contents)
        stack.callback(now.restore)
        stack.callback(_measuring.reset, _measuring.set(True))
        stack.enter_context(
            attributes_kept(modules, contents, shielded=shielded, copies=copies, apart=apart is not None)
        )
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
