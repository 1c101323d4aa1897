"""One step of NAdamW over whole tensors, as many as there are, in one launch: 7 words an element.

θ, g, m and v are read once, θ, m and v written once, which no multi-tensor pass of torch's operations can do.
"""

# ruff: noqa: PLR0917
# pyright: reportMissingImports=false, reportOperatorIssue=false
# (kernels take pointers and scalars one by one; Triton is an extra)

from __future__ import annotations

import triton
import triton.language as tl

from trainer.learner.kernels.arithmetic import after_step


@triton.jit(do_not_specialize=["count"])
def step_kernel(
    pieces, count, decay, beta1, rest1, beta2, rest2, addend, factor, found_inf,
    MASKED: tl.constexpr, PIECES: tl.constexpr, ELEMENTS: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """Moves `count` tensors of float32, each program ELEMENTS of one of them.

    `pieces` (6, count) int64 has of each the addresses of θ, g, m and v, its size, and the first of its programs. With
    `VECTORS` the addresses are multiples of 16 and the sizes of 4. If `MASKED`, nothing moves unless `found_inf` is 0.
    """
    program = tl.program_id(0).to(tl.int64)
    listed = tl.arange(0, PIECES)
    begun = tl.load(pieces + 5 * count + listed, listed < count, 1 << 62) <= program
    piece = tl.sum(begun.to(tl.int32), axis=0) - 1
    size = tl.load(pieces + 4 * count + piece)
    if MASKED:
        size = tl.where(tl.load(found_inf) == 0.0, size, 0)
    theta = tl.load(pieces + piece).to(tl.pointer_type(tl.float32))
    gradient = tl.load(pieces + count + piece).to(tl.pointer_type(tl.float32))
    first = tl.load(pieces + 2 * count + piece).to(tl.pointer_type(tl.float32))
    second = tl.load(pieces + 3 * count + piece).to(tl.pointer_type(tl.float32))
    if VECTORS:
        size = tl.multiple_of(size, 4)
        theta, gradient = tl.multiple_of(theta, 16), tl.multiple_of(gradient, 16)
        first, second = tl.multiple_of(first, 16), tl.multiple_of(second, 16)
    element = (program - tl.load(pieces + 5 * count + piece)) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = element < size
    t, g = tl.load(theta + element, inside, 0.0), tl.load(gradient + element, inside, 0.0)
    m, v = tl.load(first + element, inside, 0.0), tl.load(second + element, inside, 0.0)
    t, m, v = after_step(t, g, m, v, decay, beta1, rest1, beta2, rest2, addend, factor)
    tl.store(theta + element, t, inside)
    tl.store(first + element, m, inside)
    tl.store(second + element, v, inside)
