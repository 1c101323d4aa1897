"""Embedding tables whose rows make NAdamW's steps only when somebody looks at them, and look then as if they had.

    table = nn.Embedding(rows, width)
    keep_by_rows(table)                            # table.weight is a LazyWeight from now on, the same object
    optimizer = LazyNAdamW(table.parameters())

Nobody else needs to know: `F.embedding` and `index_select` bring the rows they read up to date, every other function
that is handed the weight, or the moments in the optimizer's state, brings up to date the whole table. What such a
function returned is a value of that time; `detach()` and `.data` give tensors that go on reading the present.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from trainer.learner import kernels
from trainer.learner.nadamw import NAdamW, Piece, move, scalars_of
from trainer.learner.tables.table import LazyTable, lerp_rounding, plain

if TYPE_CHECKING:
    from trainer.learner.kernels import DeviceTable

MOMENTS = ("exp_avg", "exp_avg_sq")
FEWEST_ROWS = 1 << 19
"""Of a table that is worth keeping by rows. In smaller ones the gain is within the noise of a shared machine, and a run
with averages and α* on 262,144 × 16 takes 1.06 times as long by rows; with a million rows a step is several times as
fast (`python -m tests.bench table`)."""


class _Read(torch.Tensor):
    """Brings its table up to date before any function reads it."""

    table: LazyTable | DeviceTable

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = _looked_up(*args, **kwargs) if func is functional.embedding else None
        if found is not None:
            return found
        if func in _INDEX_SELECT and isinstance(args[0], _Read) and len(args) == 3 and args[1] == 0:
            args[0].table.bring_up_to_date(args[2])
        elif func in _ALIASES:
            return reading(args[0].table, args[0])
        elif func not in _METADATA:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, _Read):
                    value.table.bring_up_to_date()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A plain tensor, or parameter, of the present values."""
        self.table.bring_up_to_date()
        copied = plain(self).clone()
        memo[id(self)] = copied = nn.Parameter(copied, self.requires_grad) if isinstance(self, LazyWeight) else copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as the same plain tensor or parameter."""
        return self.__deepcopy__({}).__reduce_ex__(protocol)


class LazyWeight(_Read, nn.Parameter):
    """The weight of an embedding table kept by rows."""


class _Moment(_Read):
    """A tensor that moves with a table's rows: a moment, an average, or the weight detached."""


_INDEX_SELECT = {torch.Tensor.index_select, torch.index_select}
_ALIASES = {torch.Tensor.detach, vars(torch._C.TensorBase)["data"].__get__}
_METADATA = {
    torch.Tensor.dim,
    torch.Tensor.size,
    torch.Tensor.numel,
    torch.Tensor.stride,
    torch.Tensor.is_contiguous,
    torch.Tensor.is_floating_point,
    torch.Tensor.is_inference,
    torch.Tensor.requires_grad_,
    vars(torch._C.TensorBase)["grad"].__set__,
    *(
        vars(torch._C.TensorBase)[name].__get__
        for name in (
            "grad",
            "shape",
            "dtype",
            "device",
            "ndim",
            "layout",
            "requires_grad",
            "is_cuda",
            "is_sparse",
            "is_leaf",
            "is_meta",
            "_version",
        )
    ),
}
"""What may be asked of a table without reading it."""


class _LookUp(torch.autograd.Function):
    """Rows of a table that are up to date; the gradient is sparse."""

    @staticmethod
    def forward(ctx: Any, weight: LazyWeight, ids: Tensor, padding: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.table, ctx.padding = weight.table, padding
        ctx.save_for_backward(ids)
        return torch.embedding(plain(weight), ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (ids,) = ctx.saved_tensors
        rows = gradient.contiguous().view(ids.numel(), -1)
        return ctx.table.gradient(ids, rows, ctx.padding), None, None


def _looked_up(  # noqa: PLR0917 (the signature of functional.embedding)
    ids: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    """`F.embedding`, or None for one that needs the table whole."""
    if not isinstance(weight, _Read) or max_norm is not None or scale_grad_by_freq:
        return None
    weight.table.bring_up_to_date(ids)
    if not (torch.is_grad_enabled() and isinstance(weight, LazyWeight) and weight.requires_grad):
        return torch.embedding(plain(weight), ids)
    return _LookUp.apply(weight, ids, -1 if padding_idx is None else padding_idx % len(weight))


def reading(table: LazyTable | DeviceTable, tensor: Tensor) -> Tensor:
    """`tensor`, which moves with the table's rows, as one that is never read before they are up to date."""
    made = torch.Tensor._make_subclass(_Moment, plain(tensor))
    made.table = table
    return made


class LazyNAdamW(NAdamW):
    """NAdamW that makes the steps of a `LazyWeight`'s rows when they are looked at; results are NAdamW's, bit for bit.

    A table whose gradient is not sparse (one that is also read as a whole) is moved whole, at NAdamW's cost.
    The state has NAdamW's form, and one can load the other's.
    """

    def _move_group(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        tables = [parameter for parameter in parameters if isinstance(parameter, LazyWeight)]
        for weight in tables:
            gradient, state = weight.grad, self._advanced_state(weight, group)
            assert gradient is not None
            if not isinstance(state[MOMENTS[0]], _Read):
                self._follow(weight, state)
            if gradient.is_sparse:
                weight.table.step(gradient, scalars_of(state["step"].item(), group), self.found_inf)
            else:
                weight.table.bring_up_to_date()
                moments = plain(state["exp_avg"]), plain(state["exp_avg_sq"])
                move([Piece(plain(weight), gradient, *moments, state["step"])], group, self.found_inf)
        by_rows = {id(weight) for weight in tables}
        super()._move_group([parameter for parameter in parameters if id(parameter) not in by_rows], group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of this class or of NAdamW."""
        tables = [weight for group in self.param_groups for weight in group["params"] if isinstance(weight, LazyWeight)]
        for weight in tables:
            weight.table.bring_up_to_date()
        super().load_state_dict(state_dict)
        for weight in tables:
            if weight in self.state:
                self._follow(weight, self.state[weight])

    def _follow(self, weight: LazyWeight, state: dict[str, Any]) -> None:
        moments = [plain(state[name]).contiguous() for name in MOMENTS]
        weight.table.follow(*moments)
        state.update({name: reading(weight.table, moment) for name, moment in zip(MOMENTS, moments, strict=True)})


def keep_by_rows(*models: nn.Module) -> None:
    """Make every embedding's weight that can be kept by rows a LazyWeight; for `LazyNAdamW`, and nobody else, to move.

    The parameters stay the same objects, so that modules which share one still do.
    """
    for module in itertools.chain.from_iterable(model.modules() for model in models):
        if isinstance(module, nn.Embedding) and reason_for_dense(module) is None:
            weight = module.weight
            if not isinstance(weight, LazyWeight):
                weight.__class__ = LazyWeight
                weight.table = table_for(weight)  # pyright: ignore[reportAttributeAccessIssue]


def table_for(weight: Tensor) -> LazyTable | DeviceTable:
    """What keeps this weight's rows, where it lies."""
    return LazyTable(weight) if weight.device.type == "cpu" else kernels.DeviceTable(weight)


def average_rounding(device: torch.device) -> Literal["once", "twice"] | None:
    """How torch rounds the averages that `table_for`'s tables make up for; None: in a way that they cannot follow."""
    return lerp_rounding() if device.type == "cpu" else kernels.foreach_lerp_rounding(device)


def reason_for_dense(module: nn.Embedding) -> str | None:
    """Why the module's weight cannot be kept by rows; None where it can."""
    weight = module.weight
    if weight.device.type != "cpu" and (unusable := kernels.unusable(weight.device)) is not None:
        return f"the table is on {weight.device}, where Triton's kernels make the steps of rows later: {unusable}"
    if weight.dtype is not torch.float32 or not weight.is_contiguous():
        return "the steps of rows can be made later in contiguous tables of float32 only"
    if module.max_norm is not None or module.scale_grad_by_freq:
        return "max_norm and scale_grad_by_freq need the table whole"
    return None


def pays_by_rows(module: nn.Embedding, model: nn.Module) -> bool:
    """Whether the module's weight can be kept by rows and is moved faster so, with the bits of a table moved whole.

    Not on CUDA, where a row's gradients are not added up in the order of torch's own backward, and not for a weight
    that another kind of module shares, as a language model's last layer does: it reads the table whole at every step.
    """
    weight = module.weight
    if weight.device.type != "cpu" or weight.shape[0] < FEWEST_ROWS or reason_for_dense(module) is not None:
        return False
    owners = [owner for owner in model.modules() if any(own is weight for own in owner.parameters(recurse=False))]
    return all(isinstance(owner, nn.Embedding) and reason_for_dense(owner) is None for owner in owners)
