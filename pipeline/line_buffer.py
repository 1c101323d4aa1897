"""A buffer of whole lines, as it is filled and as it is parsed: its limits, and loads that need not be aligned."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

PADDING_BYTES = 16
"""What a buffer must hold beyond its last line, for reads of eight bytes at a time."""
MAX_LINE_BYTES = 1 << 20
"""A longer run of bytes without a line end is taken for something other than a log."""


def _load_u64(typing_context, array, position):
    """The eight bytes of a contiguous uint8 array from `position` as a little-endian uint64; no bounds check."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(address, align=1)

    return types.uint64(array, types.intp), generate


load_u64: Any = intrinsic(_load_u64)
