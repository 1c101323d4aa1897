"""Keeps forward mode true to what a backward pass would see: the model's own `no_grad`, and known gaps of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.autograd.forward_ad as fw
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from stepsize.errors import MeasurementError
from stepsize.measuring.forward_mode.recurrent import RECURRENT, in_forward_mode, without_fused_kernels
from stepsize.measuring.tables import METADATA

REPAIRS = (torch.nan_to_num, Tensor.nan_to_num, torch.nansum, Tensor.nansum)
"""What replaces or passes over numbers that are not finite. torch multiplies their tangents by 0, which leaves NaN."""
REPAIRS_IN_PLACE = (torch.nan_to_num_, Tensor.nan_to_num_)
PACK = torch._pack_padded_sequence  # pyright: ignore[reportPrivateImportUsage]
WEIGHT_NORM = torch._weight_norm  # pyright: ignore[reportPrivateImportUsage]
PRODUCTS = (torch.scatter_reduce, Tensor.scatter_reduce, Tensor.scatter_reduce_)
WRONG = {"as_strided_scatter", "linear_cross_entropy"}
"""Names of operations whose tangents are wrong or lost in torch 2.13, found by comparing each with its gradient."""


class TrueToReverse(TorchFunctionMode):
    """Makes a pass in forward mode differentiate what a backward pass would.

    Within the model's own `torch.no_grad()` nothing carries a tangent on, as nothing carries a gradient. Fused
    recurrent kernels stand aside, and what has no formula is written out. `live` names the parameters that have a
    substitute in this pass, by their id.

    Raises: MeasurementError where an operation is handed such a parameter itself, whose tangent would be lost and
    whose value may be that of after the step; and for an operation whose forward-mode formula is known to be wrong.
    """

    def __init__(self, live: Mapping[int, str]) -> None:
        super().__init__()
        self.live = live

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            result = func(*args, **kwargs)
            torch._C._set_fwd_grad_enabled(torch.is_grad_enabled())
            return result
        if self.live:
            self._refuse_live(func, args)
            self._refuse_live(func, tuple(kwargs.values()))
        if fw._current_level >= 0:
            refuse_wrong_formula(func, args, kwargs)
            func = WRITTEN_OUT.get(func, func)
            recurrent = in_forward_mode(func, args, kwargs)
            if recurrent is not None:
                return recurrent()
        elif func in RECURRENT:
            return without_fused_kernels(func, args, kwargs)
        if func in REPAIRS and args:
            args = (_with_finite_tangent(args[0]), *args[1:])
        elif func in REPAIRS_IN_PLACE and args:
            return args[0].copy_(torch.nan_to_num(_with_finite_tangent(args[0]), *args[1:], **kwargs))
        result = func(*args, **kwargs)
        if func is functional.embedding:
            result = _with_padding_still(result, *args, **kwargs)
        return result if torch.is_grad_enabled() else _without_view_tangents(result, args)

    def _refuse_live(self, func: Any, args: Any) -> None:
        for arg in args:
            if isinstance(arg, nn.Parameter):
                if id(arg) in self.live and func not in METADATA:
                    raise MeasurementError(
                        f"{getattr(func, '__name__', func)} reads the parameter {self.live[id(arg)]} past the module's "
                        "own attributes, by a plain list, a closure or the loss; measuring cannot put the weights from "
                        "before the step in its place: register it (nn.ParameterList, nn.ModuleList), read it as an "
                        "attribute of the model, or make the loss's weights the model's last layer"
                    )
            elif isinstance(arg, list | tuple):
                self._refuse_live(func, arg)


def _pack_padded_sequence(padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Packing moves numbers about, so the packed tangent is the tangent of the packed."""
    primal, tangent = fw.unpack_dual(padded)
    packed, sizes = PACK(primal, lengths, batch_first)
    if tangent is None:
        return packed, sizes
    return fw.make_dual(packed, PACK(tangent, lengths, batch_first)[0]), sizes


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`v` scaled to the norm `g`, taken over all dimensions but `dim`, over all for −1."""
    others = [index for index in range(v.ndim) if index != dim]
    return v * (g / torch.linalg.vector_norm(v, 2, others, keepdim=dim != -1))


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Its formula takes a view that images with their channels last do not have."""
    return functional.group_norm(x.contiguous(), num_groups, weight, bias, eps)


WRITTEN_OUT = {PACK: _pack_padded_sequence, WEIGHT_NORM: _weight_norm, functional.group_norm: _group_norm}
"""Operations without a forward-mode formula, or one for some layouts only, and what has one in their place."""


def _with_finite_tangent(value: Any) -> Any:
    """`value` with a tangent of 0 where it is not a finite number itself."""
    primal, tangent = fw.unpack_dual(value) if isinstance(value, Tensor) else (value, None)
    return value if tangent is None else fw.make_dual(primal, torch.where(torch.isfinite(primal), tangent, 0))


def _with_padding_still(  # the signature of functional.embedding
    result: Tensor,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    """The row of the padding, which weight decay may move but no gradient reaches, is a constant."""
    primal, tangent = fw.unpack_dual(result)
    if padding_idx is None or tangent is None:
        return result
    padded = (input == padding_idx % weight.shape[0]).unsqueeze(-1)
    return fw.make_dual(primal, torch.where(padded, 0, tangent))


def _without_view_tangents(result: Any, args: Any) -> Any:
    """A view taken without gradients would find its base's tangent again later."""

    def cut(value: Any) -> Any:
        fresh = isinstance(value, Tensor) and value._is_view() and not any(value is arg for arg in args)
        return value.detach() if fresh else value

    return tree_map(cut, result) if isinstance(result, Tensor | tuple | list) else result


def refuse_wrong_formula(func: Any, args: Any, kwargs: Any) -> None:
    """Raises MeasurementError for an operation whose forward mode is wrong in torch itself and loses tangents."""
    name = getattr(func, "__name__", "")
    product = func in PRODUCTS and "prod" in (*(arg for arg in args if isinstance(arg, str)), kwargs.get("reduce"))
    if product or name in WRONG:
        raise MeasurementError(
            f"torch's forward mode is wrong for {name}{' with prod' if product else ''}: it loses what the step "
            'changes; write it in other operations, or take method="secant", which needs no forward mode'
        )
