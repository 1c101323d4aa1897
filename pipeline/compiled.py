"""Compiled functions whose machine code is kept between processes, and the load that several of them share."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numba
from llvmlite import ir
from numba import types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

inlined: Any = numba.njit(inline="always")
"""Decorates a function that is compiled into each of its compiled callers."""


def compiled(function: Any = None, *, error_model: Literal["python", "numpy"] = "python") -> Any:
    """Decorates a function that is compiled at its first call, without the GIL, and then found in numba's cache.

    numba itself compiles anew if the function's own file has changed, and would go on with machine code that holds the
    constants and the functions of other files as they were. Here the content of every file of the project that the
    function's file imports from, directly or not, is part of the key. If numba finds no folder that it may write,
    or no room there, nothing is kept.
    """
    if function is None:
        return lambda decorated: compiled(decorated, error_model=error_model)
    dispatcher: Any = numba.njit(nogil=True, error_model=error_model)(function)
    with suppress(RuntimeError):  # numba's word for no such folder
        dispatcher._cache = _SourceCache(function)
    return dispatcher


class _SourceCache(FunctionCache):
    """numba's cache of one function; its key also tells what the sources were."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._module = function.__module__

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with suppress(OSError):
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk, or one that fails: it is compiled again next time
            super().save_overload(sig, data)

    def _index_key(self, *signature_and_target: Any) -> tuple[Any, ...]:
        return (*super()._index_key(*signature_and_target), _digest_of_sources(self._module))


@cache
def _digest_of_sources(module: str) -> str:
    """SHA-256 over the files of `module` and of what it imports from its own package and from this one."""
    packages = {name.partition(".")[0] for name in (module, __name__)}
    digest = hashlib.sha256()
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name.partition(".")[0] not in packages:
            continue
        seen.add(name)
        source, imported = _read_module(name)
        digest.update(hashlib.sha256(source).digest())
        waiting += imported
    return digest.hexdigest()


@cache
def _read_module(name: str) -> tuple[bytes, list[str]]:
    """The source of a module that has been imported, and what may be modules that it imports; nothing for others."""
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None or not Path(path).is_file():
        return b"", []
    source = Path(path).read_bytes()
    imported: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    return source, imported


def _load_u64(typing_context, array, position):
    """The eight bytes of a contiguous uint8 array from `position` as a little-endian uint64; no bounds check."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(address, align=1)

    return types.uint64(array, types.intp), generate


load_u64: Any = intrinsic(_load_u64)
