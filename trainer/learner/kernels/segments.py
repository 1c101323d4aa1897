"""Sums over runs of equal rows, in an order that depends on nothing but the ids: no atomics, and no long run alone.

Letters: N look-ups, sorted by their row, U distinct rows, E embedding width.

The look-ups are cut into chunks of CHUNK. A program adds up the runs of its chunk from left to right, beginning at +0.
A run that lies in one chunk is finished; of one that goes on beyond, each chunk hands its part to the next level, at
most two a chunk, where the parts are added up in the same way, until one chunk holds all. So a row that is looked up n
times costs a chain of CHUNK additions a level and log n levels.
"""

# ruff: noqa: PLR0917
# pyright: reportMissingImports=false
# (kernels take pointers and scalars one by one; Triton is an extra)

from __future__ import annotations

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1)
"""Stands in place of a segment where a chunk has no part to hand on."""


@triton.jit(do_not_specialize=["count"])
def name_rows_kernel(ids, segments, rows, count, TAKEN: tl.constexpr):
    """rows[segment] ← its id, of `ids` (N,) and `segments` (N,), both ascending."""
    taken = tl.program_id(0) * TAKEN + tl.arange(0, TAKEN)
    inside = taken < count
    segment = tl.load(segments + taken, inside, 0)
    before = tl.load(segments + taken - 1, inside & (taken > 0), -1)
    tl.store(rows + segment, tl.load(ids + taken, inside, 0), inside & (segment != before))


@triton.jit(do_not_specialize=["count"])
def sum_chunks_kernel(
    segments, order, values, count, sums, parts_of, parts, width,
    ORDERED: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One level: `sums` (U, E) of finished segments, and the others' `parts` (2·chunks, E) with `parts_of` (2·chunks,).

    The value of position i is that at `order[i]` if `ORDERED`, and at i else.
    """
    chunk = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = chunk * CHUNK
    stop = tl.minimum(start + CHUNK, count)
    before = tl.load(segments + start - 1, start > 0, -1)
    after = tl.load(segments + stop, stop < count, -1)
    segment = tl.load(segments + start)
    opened = start
    head = tl.full((), NOTHING, tl.int32)
    tail = tl.full((), NOTHING, tl.int32)
    total = tl.zeros((COLUMNS,), tl.float32)
    first_part = parts + (2 * chunk).to(tl.int64) * width + columns
    for position in range(start, stop):
        now = tl.load(segments + position)
        if now != segment:
            if (opened == start) & (segment == before):
                head = segment
                tl.store(first_part, total, columns < tl.where(segment >= 0, width, 0))
            else:
                tl.store(
                    sums + segment.to(tl.int64) * width + columns, total, columns < tl.where(segment >= 0, width, 0)
                )
            segment = now
            opened = position
            total = tl.zeros((COLUMNS,), tl.float32)
        place = tl.load(order + position) if ORDERED else tl.cast(position, tl.int64)
        total += tl.load(values + place * width + columns, columns < tl.where(now >= 0, width, 0), 0.0)
    goes_on = segment == after
    if (opened == start) & (goes_on | (segment == before)):
        head = segment
        tail = segment  # its second part is zero, so that the segment's parts stay neighbours
        tl.store(first_part, total, columns < tl.where(segment >= 0, width, 0))
        tl.store(first_part + width, tl.zeros((COLUMNS,), tl.float32), columns < tl.where(segment >= 0, width, 0))
    elif goes_on:
        tail = segment
        tl.store(first_part + width, total, columns < tl.where(segment >= 0, width, 0))
    else:
        tl.store(sums + segment.to(tl.int64) * width + columns, total, columns < tl.where(segment >= 0, width, 0))
    if tl.program_id(1) == 0:
        tl.store(parts_of + 2 * chunk, head)
        tl.store(parts_of + 2 * chunk + 1, tail)
