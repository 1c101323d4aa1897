"""What a pass of the model changes beside its logits, and how it is put back: generators, attributes, buffers."""

from __future__ import annotations

import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from stepsize.errors import MeasurementError
from stepsize.measuring import handoff

PutBack = Callable[[], None]

MOST_COPIED = 65_536
"""Tensor attributes of up to so many numbers, and containers of up to so many items, are copied before a pass."""
DEPTH = 3
"""How far containers within containers are followed."""
PLUMBING = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of a module that are torch's own."""
PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size})
"""Types of values that hold nothing which could change."""
Modules = Iterable[tuple[str, nn.Module]]
"""Modules by path, such as `named_modules` gives."""
Contents = Sequence[tuple[str, Any]]
"""What modules hold in attributes of their own, by the attribute's path."""


@dataclass(frozen=True)
class Generators:
    """The random states of one moment: torch's of the CPU and one CUDA device, Python's, numpy's, the modules' own."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device
    others: tuple[PutBack, ...] = ()

    @classmethod
    def capture(cls, device: torch.device, contents: Contents = ()) -> Generators:
        """The present state; with it that of every generator among `contents`."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        others = [_state_of(random)]
        if "numpy" in sys.modules:
            others.append(_state_of(sys.modules["numpy"].random))
        kinds = _generator_kinds() if contents else ()
        others += [_state_of(item) for _, item in contents if isinstance(item, kinds)]
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


def _generator_kinds() -> tuple[type, ...]:
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    if "numpy" in sys.modules:
        numpy_random = sys.modules["numpy"].random
        kinds = (*kinds, numpy_random.Generator, numpy_random.RandomState)
    return kinds


def contents_of(modules: Modules) -> list[tuple[str, Any]]:
    """What `modules` hold in attributes that are not torch's own, and what is within it: all that could change."""
    found = []
    for path, module in modules:
        where = f"{path}." if path else ""
        for name, value in vars(module).items():
            if type(value) not in PLAIN and name not in PLUMBING:
                items = (item for item in _inside(value, module) if type(item) not in PLAIN)
                found += [(f"{where}{name}", item) for item in items]
    return found


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
def attributes_kept(
    modules: Modules,
    contents: Contents,
    *,
    buffers: bool = False,
    shielded: Collection[int] = (),
    copies: Mapping[int, Tensor] | None = None,
    apart: bool = False,
) -> Iterator[None]:
    """Afterwards every attribute of `modules` is what it was, also within containers and tensors: their `contents`.

    That covers counters, averages and caches which a model keeps beside its buffers, in dataclasses, namespaces and
    objects of classes beside its own too. `buffers` are kept where asked for. Other objects are left to themselves.
    Tensors in `shielded`, by id, are left to themselves: training's that are out of reach, and a pass's own. Of some
    parameters `copies` are there already. `apart` from training's stream nothing is put back into a tensor that it
    may be using.

    Raises: MeasurementError where a parameter, or a tensor that cannot be put back, was written to in place; a
    parameter that is not too large to copy is then put back.
    """
    kept: list[PutBack | None] = []
    for path, module in modules:
        where = f"{path}." if path else ""
        kept.append(_namespace(module))
        for name, value in module._parameters.items():
            if value is not None and id(value) not in shielded:
                kept.append(_unwritten(value, f"{where}{name}", (copies or {}).get(id(value))))
        if buffers:
            contents = [*contents, *((f"{where}{name}", buffer) for name, buffer in module._buffers.items())]
    kept += [_content(item, name, apart=apart) for name, item in contents if id(item) not in shielded]
    try:
        yield
    finally:
        errors = []
        for put_back in kept:
            if put_back is None:
                continue
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


def _content(value: Any, name: str, *, apart: bool) -> PutBack | None:
    if isinstance(value, Tensor):
        return _tensor(value, name, apart=apart)
    if isinstance(value, list | dict | set | deque) and len(value) <= MOST_COPIED:
        before = copy.copy(value)
        return lambda: _refill(value, before)
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray):
        return _array(value)
    return None


def _array(value: Any) -> PutBack | None:
    if value.size > MOST_COPIED or not value.flags.writeable:
        return None
    before = value.copy()

    def put_back() -> None:
        value[...] = before

    return put_back


def _written_past_its_version(value: Tensor, before: Tensor | None) -> bool:
    """By its `data` or by numpy; on a device that cannot be seen without waiting for it."""
    if before is None or not handoff.host_sees(value) or torch.equal(value, before):
        return False
    nan_as_it_was = value.is_floating_point() and torch.allclose(value.detach(), before, rtol=0, atol=0, equal_nan=True)
    return not nan_as_it_was


def _unwritten(parameter: nn.Parameter, name: str, before: Tensor | None) -> PutBack:
    version = None if parameter.is_inference() else parameter._version
    if version is None or parameter.numel() > MOST_COPIED or type(parameter) is not nn.Parameter:
        before = None  # to copy a table whose rows are brought up to date when they are read would read all of them
    elif before is None:
        before = parameter.detach().clone()

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


def _tensor(value: Tensor, name: str, *, apart: bool) -> PutBack | None:
    if isinstance(value, nn.Parameter) or value.requires_grad or value.is_inference() or value.layout != torch.strided:
        return None
    version = value._version
    before = value.clone() if value.numel() <= MOST_COPIED and not apart else None

    def put_back() -> None:
        unchanged = value._version == version
        if before is None:
            if not unchanged:
                where = " on a stream of its own" if apart else ""
                raise MeasurementError(
                    f"the model writes into its attribute {name!r} ({value.numel():,} numbers) while it is measured"
                    f"{where}; make it a buffer (register_buffer), which measuring leaves alone"
                )
        elif not unchanged or _written_past_its_version(value, before):
            with torch.no_grad():
                value.copy_(before)

    return put_back


@dataclass(frozen=True, kw_only=True)
class TensorsApart:
    """Copies of the tensors that modules hold outside of parameters and buffers, for passes apart from training.

    A pass on a stream of its own would read these while training writes to them, and write while training reads.
    """

    places: tuple[tuple[dict[str, Any], str, Tensor], ...]
    """Namespaces, the names that are tensors there, and the copies."""
    within: tuple[Tensor, ...]
    """Tensors inside containers and other objects, which are not copied: `attributes_kept` refuses to write to them."""

    @classmethod
    def of(cls, modules: Modules, *, with_registered: bool = False, leaving: Collection[int] = ()) -> TensorsApart:
        """The present contents, copied on the current stream; parameters and buffers too if `with_registered`.

        Those in `leaving`, by id, stay where they are.
        """
        modules = list(modules)
        copies: dict[int, Tensor] = {}
        places: list[tuple[dict[str, Any], str, Tensor]] = []
        for _, module in modules:
            held: list[dict[str, Any]] = [vars(module)]
            held += [module._parameters, module._buffers] if with_registered else []  # pyright: ignore[reportArgumentType]
            for namespace in held:
                for name, value in namespace.items():
                    if isinstance(value, Tensor) and id(value) not in leaving and not value.is_inference():
                        if id(value) not in copies:
                            copies[id(value)] = value.detach().clone()
                        places.append((namespace, name, copies[id(value)]))
        items = (item for _, item in contents_of(modules) if isinstance(item, Tensor) and id(item) not in copies)
        return cls(places=tuple(places), within=tuple(items))

    def tensors(self) -> list[Tensor]:
        """Every tensor that a pass may read, for `record_stream`."""
        return [*(value for _, _, value in self.places), *self.within]

    @contextmanager
    def in_place(self) -> Iterator[set[int]]:
        """The copies take the tensors' places, fresh ones each time: what a pass writes into is thrown away.

        Yields the fresh copies' ids.
        """
        fresh = {id(value): value.clone() for _, _, value in self.places}
        originals = [namespace[name] for namespace, name, _ in self.places]
        for namespace, name, value in self.places:
            namespace[name] = fresh[id(value)]
        try:
            yield {id(value) for value in fresh.values()}
        finally:
            for (namespace, name, _), original in zip(self.places, originals, strict=True):
                namespace[name] = original
