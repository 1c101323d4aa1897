"""Refuses to look at a tensor's numbers: on a device each look waits for it, and on a CPU nobody would notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

LOOKS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::argwhere",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::_unique",
    "aten::_unique2",
    "aten::bincount",
    "aten::histc",
    "aten::repeat_interleave",
    "aten::_coalesce",
    "aten::coalesce",
    "aten::count_nonzero.item",
    "aten::allclose",
}
"""Operations that a CUDA device is waited for in: their result, or its size, is a number on the host."""
LOOKS_OF_PYTHON = {
    *(getattr(Tensor, name) for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__")),
    *(getattr(Tensor, name) for name in ("__index__", "__complex__", "__repr__", "__format__", "__contains__")),
    *(
        getattr(Tensor, name)
        for name in ("__array__", "equal", "allclose", "nonzero", "masked_select", "unique", "coalesce", "to_sparse")
    ),
    torch.equal,
    torch.allclose,
}
"""What reads a CPU's tensor past the dispatcher."""


class LookedError(AssertionError):
    """A number was looked at."""


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [index for index in args[1] if index is not None] if func is torch.ops.aten.index.Tensor else []
        if func.name().split(".")[0] in LOOKS or any(mask.dtype is torch.bool for mask in masks):
            raise LookedError(func.name())
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKS_OF_PYTHON:
            raise LookedError(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


@contextmanager
def no_looks() -> Iterator[None]:
    """Raises LookedError where something within would wait for a device."""
    with _Functions(), _Operations():
        yield
