"""What a pass of the model changes beside its logits, and how it is put back: generators, attributes, buffers."""

from __future__ import annotations

import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from stepsize.errors import MeasurementError

PutBack = Callable[[], None]

MOST_COPIED = 65_536
"""Tensor attributes of up to so many numbers, and containers of up to so many items, are copied before a pass."""
DEPTH = 3
"""How far containers within containers are followed."""
PLUMBING = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of a module that are torch's own."""


@dataclass(frozen=True)
class Generators:
    """The random states of one moment: torch's of the CPU and one CUDA device, Python's, numpy's, the modules' own."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device
    others: tuple[PutBack, ...] = ()

    @classmethod
    def capture(cls, device: torch.device, *owners: nn.Module) -> Generators:
        """The present state; with it that of every generator found in an attribute of `owners` or their parts."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        others = [_state_of(random)]
        if "numpy" in sys.modules:
            others.append(_state_of(sys.modules["numpy"].random))
        others += [_state_of(found) for owner in owners for found in _generators_of(owner)]
        return cls(torch.get_rng_state(), cuda, device, tuple(put_back for put_back in others if put_back is not None))

    def restore(self) -> None:
        """Put every one of them where it was."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
        for put_back in self.others:
            put_back()


def own_copy(value: Any) -> Any:
    """`value` with copies of its tensors and containers, so that whoever writes into it leaves the caller's alone.

    Containers are tuples, lists, mappings (also a tokenizer's BatchEncoding) and dataclasses. Parameters, other
    objects and tensors that are expanded, which torch lets nobody write to, are the same ones.
    """
    if isinstance(value, Tensor):
        expanded = value.layout == torch.strided and any(
            stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)
        )
        return value if expanded or isinstance(value, nn.Parameter) else value.clone()
    if isinstance(value, MutableMapping):
        copied = copy.copy(value)
        for key, item in value.items():
            copied[key] = own_copy(item)
        return copied
    if is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for name, item in vars(value).items():
            object.__setattr__(copied, name, own_copy(item))
        return copied
    leaves, structure = tree_flatten(value)
    if len(leaves) == 1 and leaves[0] is value:
        return value
    return tree_unflatten([own_copy(leaf) for leaf in leaves], structure)


def _state_of(generator: Any) -> PutBack | None:
    """What puts `generator` back into its present state; None for what is no generator."""
    for get, put in (("getstate", "setstate"), ("get_state", "set_state")):
        if hasattr(generator, get) and hasattr(generator, put):
            state, set_state = getattr(generator, get)(), getattr(generator, put)
            return lambda: set_state(state)
    bits = getattr(generator, "bit_generator", None)
    if bits is not None and isinstance(getattr(bits, "state", None), dict):
        state = copy.deepcopy(bits.state)
        return lambda: setattr(bits, "state", state)
    return None


def _generators_of(owner: nn.Module) -> Iterator[Any]:
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    if "numpy" in sys.modules:
        numpy_random = sys.modules["numpy"].random
        kinds = (*kinds, numpy_random.Generator, numpy_random.RandomState)
    for module in owner.modules():
        for name, value in vars(module).items():
            if name not in PLUMBING:
                yield from (item for item in _inside(value, module) if isinstance(item, kinds))


def _inside(value: Any, module: nn.Module) -> Iterator[Any]:
    """`value` and what it holds, also where it is a record or an object of a class defined beside the module's."""
    beside = (
        type(value).__module__ == type(module).__module__ and not isinstance(value, nn.Module) and not callable(value)
    )
    if hasattr(value, "__dict__") and (beside or is_dataclass(value) or isinstance(value, SimpleNamespace)):
        yield from _within(vars(value))
    else:
        yield from _within(value)


def _within(value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """`value` and, of containers that are not too large, what they hold."""
    yield value
    if depth == 0 or not isinstance(value, list | tuple | dict | set | deque) or len(value) > MOST_COPIED:
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _within(item, depth - 1)


@contextmanager
def attributes_kept(*owners: nn.Module, buffers: bool = False) -> Iterator[None]:
    """Afterwards every attribute of `owners` and their parts is what it was, also within containers and tensors.

    That covers counters, averages and caches which a model keeps beside its buffers, in dataclasses, namespaces and
    objects of classes beside its own too. `buffers` are kept where asked for. Other objects are left to themselves.

    Raises: MeasurementError where a parameter, or a tensor attribute too large to copy, was written to in place; a
    parameter that is not too large to copy is then put back.
    """
    kept: list[PutBack] = []
    for owner in owners:
        for path, module in owner.named_modules():
            kept.append(_namespace(module))
            where = f"{path}." if path else ""
            for name, value in vars(module).items():
                if name not in PLUMBING:
                    kept += [_content(item, f"{where}{name}") for item in _inside(value, module)]
            kept += [_unwritten(value, f"{where}{name}") for name, value in module.named_parameters(recurse=False)]
            if buffers:
                kept += [_content(buffer, f"{where}{name}") for name, buffer in module.named_buffers(recurse=False)]
    try:
        yield
    finally:
        errors = []
        for put_back in kept:
            try:
                put_back()
            except MeasurementError as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _namespace(module: nn.Module) -> PutBack:
    before = {name: value for name, value in vars(module).items() if name not in PLUMBING}

    def put_back() -> None:
        now = vars(module)
        for name in [name for name in now if name not in PLUMBING and name not in before]:
            del now[name]
        for name, value in before.items():
            if now.get(name, None) is not value:
                now[name] = value

    return put_back


def _content(value: Any, name: str) -> PutBack:
    if isinstance(value, Tensor):
        return _tensor(value, name)
    if isinstance(value, list | dict | set | deque) and len(value) <= MOST_COPIED:
        before = copy.copy(value)
        return lambda: _refill(value, before)
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray):
        return _array(value)
    return lambda: None


def _array(value: Any) -> PutBack:
    if value.size > MOST_COPIED or not value.flags.writeable:
        return lambda: None
    before = value.copy()

    def put_back() -> None:
        value[...] = before

    return put_back


def _written_past_its_version(value: Tensor, before: Tensor | None) -> bool:
    """By its `data` or by numpy; on a device that cannot be seen without waiting for it."""
    if before is None or value.device.type != "cpu" or torch.equal(value.detach(), before):
        return False
    nan_as_it_was = value.is_floating_point() and torch.allclose(value.detach(), before, rtol=0, atol=0, equal_nan=True)
    return not nan_as_it_was


def _unwritten(parameter: nn.Parameter, name: str) -> PutBack:
    version = None if parameter.is_inference() else parameter._version
    before = parameter.detach().clone() if version is not None and parameter.numel() <= MOST_COPIED else None

    def check() -> None:
        if version is None or (parameter._version == version and not _written_past_its_version(parameter, before)):
            return
        if before is not None:
            with torch.no_grad():
                parameter.copy_(before)
        raise MeasurementError(
            f"the model writes into its parameter {name!r} in its forward pass, so measuring changes what is "
            "trained; keep averages in buffers (register_buffer), which measuring leaves alone, or update them "
            "outside of forward"
        )

    return check


def _refill(container: Any, before: Any) -> None:
    same = len(container) == len(before)
    if isinstance(container, dict):
        same = same and all(a is b and container[a] is before[b] for a, b in zip(container, before, strict=True))
    elif not isinstance(container, set):
        same = same and all(a is b for a, b in zip(container, before, strict=True))
    if same and not isinstance(container, set):
        return
    container.clear()
    container.update(before) if isinstance(container, dict | set) else container.extend(before)


def _tensor(value: Tensor, name: str) -> PutBack:
    if isinstance(value, nn.Parameter) or value.requires_grad or value.is_inference() or value.layout != torch.strided:
        return lambda: None
    version = value._version
    before = value.detach().clone() if value.numel() <= MOST_COPIED else None

    def put_back() -> None:
        unchanged = value._version == version
        if before is None:
            if not unchanged:
                raise MeasurementError(
                    f"the model writes into its attribute {name!r} ({value.numel():,} numbers) while it is measured; "
                    "make it a buffer (register_buffer), which measuring leaves alone"
                )
        elif not unchanged or _written_past_its_version(value, before):
            with torch.no_grad():
                value.copy_(before)

    return put_back
