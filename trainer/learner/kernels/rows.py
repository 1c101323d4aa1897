"""Triton kernels over the rows of a table: bringing them up to date, moving them, averaging them.

Letters: R rows, E embedding width, N look-ups. A program of one warp or a few takes whole rows.
"""

# ruff: noqa: PLR0917
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (kernels take pointers and scalars one by one; Triton is an extra)

from __future__ import annotations

import triton
import triton.language as tl

from trainer.learner.kernels.arithmetic import (
    BLOCK,
    SHORT,
    after_step,
    at_rest,
    decayed,
    lerp,
    shrunk,
    steps_made,
    whole_steps,
)


@triton.jit(do_not_specialize=["count", "base", "steps", "rows"])
def catch_up_kernel(
    ids, count, stamps, rows, base, steps, theta, m, v, average, numbers, bounds, width, beta1, beta2, negligible,
    withheld,
    WHOLE: tl.constexpr, MASKED: tl.constexpr, AVERAGED: tl.constexpr, FUSED: tl.constexpr,
    COLUMNS: tl.constexpr, TAKEN: tl.constexpr,
):  # fmt: skip
    """Rows `ids` (N,), or all if `WHOLE`, make their steps of `numbers` (4, steps) from their stamp on.

    `stamps` (R,) has the step each row is current at, or one before `base`; `numbers` begins at `base`. Of the
    programs that meet a row, the one whose atomic finds it behind makes its steps; ids that are no rows are left out.
    If `MASKED`, a step for which `withheld` (steps,) is not 0 moves nothing but the average. What `at_rest` proves
    holds with fewer steps too: they leave more of θ and v.
    """
    columns = tl.arange(0, COLUMNS)
    inside = columns < width
    start = tl.program_id(0) * TAKEN
    for position in range(start, tl.minimum(start + TAKEN, count)):
        row = tl.cast(position, tl.int64) if WHOLE else tl.load(ids + position).to(tl.int64)
        known = (row >= 0) & (row < rows)
        since = tl.load(stamps + row, mask=known, other=base + steps)
        if since < base + steps:
            if not WHOLE:
                since = tl.atomic_max(stamps + row, base + steps, sem="relaxed")
            if since < base + steps:
                place = row * width + columns
                t = tl.load(theta + place, inside, 0.0)
                a, b = tl.load(m + place, inside, 0.0), tl.load(v + place, inside, 0.0)
                c = tl.load(average + place, inside, 0.0) if AVERAGED else t
                k = tl.maximum(since - base, 0)
                while k < steps:
                    block = k // BLOCK
                    stop = tl.minimum((block + 1) * BLOCK, steps)
                    calm = False
                    if steps - k <= SHORT:
                        stop = steps
                    elif at_rest(t, a, b, inside, bounds + 4 * (tl.cdiv(steps, BLOCK) + block), negligible):
                        calm = True
                        stop = steps
                    elif stop < steps:
                        calm = at_rest(t, a, b, inside, bounds + 4 * block, negligible)
                    if calm:
                        t, c = decayed(t, c, numbers, steps, withheld, k, stop, MASKED, AVERAGED, FUSED)
                        made = steps_made(withheld, k, stop, MASKED)
                        a = shrunk(a, beta1, made)
                        b = shrunk(b, beta2, made)
                    else:
                        t, a, b, c = whole_steps(
                            t, a, b, c, numbers, steps, withheld, k, stop, beta1, beta2, MASKED, AVERAGED, FUSED
                        )
                    k = stop
                tl.store(theta + place, t, inside)
                tl.store(m + place, a, inside)
                tl.store(v + place, b, inside)
                if AVERAGED:
                    tl.store(average + place, c, inside)


@triton.jit(do_not_specialize=["count", "rows", "now"])
def move_kernel(
    distinct, segments, count, sums, stamps, rows, now, theta, m, v, width,
    decay, beta1, rest1, beta2, rest2, addend, factor, found_inf,
    MASKED: tl.constexpr, COLUMNS: tl.constexpr, TAKEN: tl.constexpr,
):  # fmt: skip
    """One step of `distinct` rows, as many as the last of `segments` (count,) says, with their `sums`.

    Each is stamped as current at `now`. If `MASKED`, that is all where `found_inf` is not 0.
    """
    found = tl.load(segments + count - 1) + 1
    start = tl.program_id(0) * TAKEN
    if start < found:
        taken = start + tl.arange(0, TAKEN)
        row = tl.load(distinct + taken, taken < found, -1).to(tl.int64)
        known = (row >= 0) & (row < rows)
        columns = tl.arange(0, COLUMNS)
        moved = width
        if MASKED:
            moved = tl.where(tl.load(found_inf) == 0.0, width, 0)
        inside = known[:, None] & (columns < moved)[None, :]
        place = row[:, None] * width + columns[None, :]
        g = tl.load(sums + taken.to(tl.int64)[:, None] * width + columns[None, :], inside, 0.0)
        t = tl.load(theta + place, inside, 0.0)
        a, b = tl.load(m + place, inside, 0.0), tl.load(v + place, inside, 0.0)
        t, a, b = after_step(t, g, a, b, decay, beta1, rest1, beta2, rest2, addend, factor)
        tl.store(theta + place, t, inside)
        tl.store(m + place, a, inside)
        tl.store(v + place, b, inside)
        tl.store(stamps + row, tl.zeros_like(taken) + now, known)


@triton.jit(do_not_specialize=["now", "rows"])
def average_kernel(
    stamps, rows, now, mean, theta, weight, width, FUSED: tl.constexpr, COLUMNS: tl.constexpr, TAKEN: tl.constexpr
):
    """The average `mean` of every row that is current at `now`, taken once at `weight`."""
    start = tl.program_id(0) * TAKEN
    taken = start + tl.arange(0, TAKEN)
    current = tl.load(stamps + taken, taken < rows, -1) == now
    if tl.sum(current.to(tl.int32), axis=0) > 0:
        columns = tl.arange(0, COLUMNS)
        inside = columns < width
        for row in range(start, tl.minimum(start + TAKEN, rows)):
            if tl.load(stamps + row) == now:
                place = tl.cast(row, tl.int64) * width + columns
                t, c = tl.load(theta + place, inside, 0.0), tl.load(mean + place, inside, 0.0)
                tl.store(mean + place, lerp(c, t, weight, FUSED), inside)
