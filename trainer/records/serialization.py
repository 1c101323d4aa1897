"""Nested Python state as JSON plus named tensors, and back, bit for bit and without pickle."""

from __future__ import annotations

import base64
import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TAG = "$"
"""A JSON object with this key stands for a value that JSON has no form for."""


def serialize(value: Any, *, on_host: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """The JSON form of `value`, and its tensors by name.

    Takes what state dicts hold: None, bool, int, float (nan and ±inf too), str, bytes, list, tuple, set, deque,
    dict with any of these as keys, torch tensors, dtypes, devices and sizes, numpy arrays and scalars.
    A tensor that occurs in several places is stored once and is one tensor again after `deserialize`; tensors
    that merely overlap become separate. The tensors returned are contiguous, detached, on the CPU, and
    share no memory with one another (but may with `value`). With `on_host` False they are `value`'s own, detached,
    wherever and however they lie, for somebody who copies them before they change.

    Raises: TypeError naming the place of anything else.
    """
    writer = _Writer(on_host=on_host)
    return writer.write(value, ""), writer.tensors


def deserialize(form: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `serialize` took apart."""
    if isinstance(form, list):
        return [deserialize(item, tensors) for item in form]
    if not isinstance(form, dict):
        return form
    kind = form.get(_TAG)
    if kind is None:
        return {key: deserialize(item, tensors) for key, item in form.items()}
    return _READERS[kind](form["value"], tensors)


class _Writer:
    def __init__(self, *, on_host: bool) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._on_host = on_host
        self._seen: dict[Any, dict[str, Any]] = {}
        self._storages: set[int] = set()

    def write(self, value: Any, place: str) -> Any:
        if value is None or type(value) in {bool, int, str}:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else _tagged("float", repr(value))
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, np.ndarray):
            return _tagged("array", self._tensor(torch.from_numpy(np.array(value)), place))
        if isinstance(value, np.generic):
            return _tagged("scalar", self._tensor(torch.from_numpy(np.array(value)), place))
        if type(value) is list:
            return [self.write(item, f"{place}.{index}") for index, item in enumerate(value)]
        if type(value) is deque:
            return _tagged("deque", [value.maxlen, self.write(list(value), place)])
        if type(value) in _SEQUENCES:
            return _tagged(_SEQUENCES[type(value)], [self.write(x, f"{place}.{i}") for i, x in enumerate(value)])
        if type(value) in {dict, OrderedDict, defaultdict}:
            return self._dict(value, place)
        if isinstance(value, bytes):
            return _tagged("bytes", base64.b64encode(value).decode("ascii"))
        if isinstance(value, torch.dtype | torch.device):
            return _tagged(type(value).__name__, str(value).removeprefix("torch."))
        raise TypeError(f"cannot save {place.lstrip('.') or 'the state'}: no form for {type(value).__qualname__}")

    def _dict(self, value: Mapping[Any, Any], place: str) -> Any:
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: self.write(item, f"{place}.{key}") for key, item in value.items()}
        items = [[self.write(key, place), self.write(item, f"{place}.{key}")] for key, item in value.items()]
        return _tagged("dict", items)

    def _tensor(self, tensor: Tensor, place: str) -> dict[str, Any]:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise TypeError(f"cannot save {place.lstrip('.')}: no form for a tensor of layout {tensor.layout}")
        tensor = tensor.detach()
        storage = tensor.untyped_storage().data_ptr()
        identity = (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if storage and identity in self._seen:
            return self._seen[identity]
        name = self._new_name(place.lstrip(".") or "value")
        form = _tagged("tensor", {"name": name})
        if not tensor.is_contiguous() and _is_dense(tensor):
            form["value"]["stride"] = list(tensor.stride())
        self._seen[identity] = form
        self.tensors[name] = self._brought_to_host(tensor) if self._on_host else tensor
        return form

    def _brought_to_host(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        host = tensor.resolve_conj().resolve_neg().cpu().contiguous()
        if host.untyped_storage().data_ptr() == storage and storage in self._storages:
            host = host.clone()
        self._storages.add(storage)
        return host

    def _new_name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.tensors:
            number += 1
            name = f"{wanted}#{number}"
        return name


def _tagged(kind: str, value: Any) -> dict[str, Any]:
    return {_TAG: kind, "value": value}


def _is_dense(tensor: Tensor) -> bool:
    """Whether the strides are those of a permuted contiguous tensor."""
    return torch.empty_like(tensor, memory_format=torch.preserve_format, device="meta").stride() == tensor.stride()


def _dense_strides(shape: torch.Size, stride: list[int]) -> bool:
    """Whether a tensor of `shape` fills its memory with these strides: not if they are of one with other rows, of
    which these were taken, and which they would ask the whole memory of."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) == shape.numel()


def _tensor_of(value: dict[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    tensor = tensors[value["name"]]
    if "stride" not in value or not _dense_strides(tensor.shape, value["stride"]):
        return tensor
    strided = torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype, device=tensor.device)
    return strided.copy_(tensor)


def _items(value: list[Any], tensors: Mapping[str, Tensor]) -> list[Any]:
    return [deserialize(item, tensors) for item in value]


_SEQUENCES = {tuple: "tuple", set: "set", torch.Size: "size"}

_READERS = {
    "float": lambda value, _: float(value),
    "bytes": lambda value, _: base64.b64decode(value),
    "dtype": lambda value, _: getattr(torch, value),
    "device": lambda value, _: torch.device(value),
    "tensor": _tensor_of,
    "array": lambda value, tensors: deserialize(value, tensors).numpy(),
    "scalar": lambda value, tensors: deserialize(value, tensors).numpy()[()],
    "tuple": lambda value, tensors: tuple(_items(value, tensors)),
    "set": lambda value, tensors: set(_items(value, tensors)),
    "deque": lambda value, tensors: deque(deserialize(value[1], tensors), maxlen=value[0]),
    "size": lambda value, tensors: torch.Size(_items(value, tensors)),
    "dict": lambda value, tensors: {deserialize(key, tensors): deserialize(item, tensors) for key, item in value},
}
