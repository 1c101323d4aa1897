"""The kernels as functions of tensors; each is queued on the current stream, and the host waits for none.

Letters: R rows, E embedding width, N look-ups, U distinct rows.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (Triton's compile-time arguments and launch options are no part of a kernel's signature)

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.learner.kernels import rows as row_kernels
from trainer.learner.kernels import segments as segment_kernels
from trainer.learner.kernels import whole as whole_kernels

CHUNK = 32
"""Values that a program adds up one after the other."""
ROWS_A_PROGRAM = 4
STAMPS_A_PROGRAM = 32
ELEMENTS_A_PROGRAM = 1024
FUSED_PIECES = 64
"""Tensors moved by one launch at most."""
EXACT: dict[str, Any] = {"enable_fp_fusion": False}
"""How kernels are compiled: a product is rounded before it is added to anything."""


@dataclass(frozen=True)
class RowArrays:
    """A table's weight, moments and average (R, E), contiguous float32 of one device."""

    theta: Tensor
    m: Tensor
    v: Tensor
    average: Tensor | None = None
    fused: bool = True
    """Whether the average is rounded once a step, as `lerp_rounding` says."""

    @property
    def shape(self) -> tuple[int, int]:
        rows, width = self.theta.shape
        return rows, width


@dataclass(frozen=True)
class MissedSteps:
    """The steps that rows are behind: `count`, from step `base` on."""

    base: int
    count: int
    numbers: Tensor
    """(4, count) float32, as `History.numbers`."""
    bounds: Tensor
    """(2, blocks, 4) float64, as `History.bounds`."""
    betas: tuple[np.float32, np.float32]
    withheld: Tensor | None = None
    """(count or more,) float32: not 0 for a step that moved nothing; None if all did."""


class RowSums(NamedTuple):
    """Every distinct row of some look-ups, ascending, with the sum of its values; on the device even their number.

    The first U entries count, U being one more than the last of `segments`.
    """

    rows: Tensor
    """(N,)"""
    segments: Tensor
    """(N,) int32: which of `rows` each look-up is, look-ups sorted by row."""
    sums: Tensor
    """(N, E)"""


def catch_up(ids: Tensor | None, stamps: Tensor, arrays: RowArrays, steps: MissedSteps, negligible: float) -> None:
    """Rows `ids` (N,), or all, make the steps that they are behind; ids that are no rows are left out.

    Of `ids` given, `stamps` (R,) int32 are brought up to date too.
    """
    rows, width = arrays.shape
    count = rows if ids is None else len(ids)
    if not count:
        return
    with _on(stamps):
        row_kernels.catch_up_kernel[(_cdiv(count, ROWS_A_PROGRAM),)](
            stamps if ids is None else ids,
            count,
            stamps,
            rows,
            steps.base,
            steps.count,
            arrays.theta,
            arrays.m,
            arrays.v,
            arrays.theta if arrays.average is None else arrays.average,
            steps.numbers,
            steps.bounds,
            width,
            float(steps.betas[0]),
            float(steps.betas[1]),
            negligible,
            stamps if steps.withheld is None else steps.withheld,
            WHOLE=ids is None,
            MASKED=steps.withheld is not None,
            AVERAGED=arrays.average is not None,
            FUSED=arrays.fused,
            **_row_sizes(width, ROWS_A_PROGRAM),
        )


def sum_by_row(ids: Tensor, values: Tensor) -> RowSums:
    """Adds up the `values` (N, E) of equal `ids` (N,), N > 0.

    In the order of `ids`, CHUNK of them sorted by row at a time, then the chunks' parts likewise: the same bits for the
    same ids and values, on every device.
    """
    count, width = values.shape
    ordered, order = torch.sort(ids, stable=True)
    begins = torch.zeros(count, dtype=torch.int32, device=ids.device)
    begins[1:] = ordered[1:] != ordered[:-1]
    segments = torch.cumsum(begins, 0, dtype=torch.int32)
    found = RowSums(torch.empty_like(ordered), segments, torch.empty_like(values))
    columns = min(_power_of_2(width), 128)
    with _on(ids):
        segment_kernels.name_rows_kernel[(_cdiv(count, 1024),)](
            ordered, segments, found.rows, count, TAKEN=1024, **EXACT
        )
        level, left, ordered_level = (segments, values), count, True
        while True:
            chunks = _cdiv(left, CHUNK)
            parts_of = torch.empty(2 * chunks, dtype=torch.int32, device=ids.device)
            parts = torch.empty(2 * chunks, width, dtype=torch.float32, device=ids.device)
            segment_kernels.sum_chunks_kernel[(chunks, _cdiv(width, columns))](
                level[0],
                order,
                level[1],
                left,
                found.sums,
                parts_of,
                parts,
                width,
                ORDERED=ordered_level,
                CHUNK=CHUNK,
                COLUMNS=columns,
                num_warps=max(1, columns // 128),
                **EXACT,
            )
            if chunks == 1:
                return found
            level, left, ordered_level = (parts_of, parts), 2 * chunks, False


def move_found(
    found: RowSums,
    stamps: Tensor,
    now: int,
    arrays: RowArrays,
    scalars: Sequence[np.float32],
    *,
    found_inf: Tensor | None = None,
) -> None:
    """One step at `nadamw.scalars_of` of the rows in `found`, which are up to date; they are stamped with `now`.

    Where `found_inf` is not 0 they are stamped alone.
    """
    rows, width = arrays.shape
    count = len(found.rows)
    with _on(stamps):
        row_kernels.move_kernel[(_cdiv(count, ROWS_A_PROGRAM),)](
            found.rows,
            found.segments,
            count,
            found.sums,
            stamps,
            rows,
            now,
            arrays.theta,
            arrays.m,
            arrays.v,
            width,
            *map(float, scalars),
            stamps if found_inf is None else found_inf,
            MASKED=found_inf is not None,
            **_row_sizes(width, ROWS_A_PROGRAM),
        )


def average_current(stamps: Tensor, now: int, arrays: RowArrays, weight: np.float32) -> None:
    """The average of every row that `stamps` has as current at `now`, taken once at `weight`."""
    assert arrays.average is not None
    rows, width = arrays.shape
    with _on(stamps):
        row_kernels.average_kernel[(_cdiv(rows, STAMPS_A_PROGRAM),)](
            stamps,
            rows,
            now,
            arrays.average,
            arrays.theta,
            float(weight),
            width,
            FUSED=arrays.fused,
            **_row_sizes(width, STAMPS_A_PROGRAM),
        )


def move_whole(
    pieces: Iterable[Sequence[Tensor]], scalars: Sequence[np.float32], found_inf: Tensor | None = None
) -> None:
    """One step at `nadamw.scalars_of` of (θ, g, m, v) each, contiguous float32 tensors of one device.

    Nothing moves where `found_inf`, a scalar of float32 there, is not 0.
    """
    filled = [piece for piece in pieces if piece[0].numel()]
    for vectors in (True, False):  # where all addresses and sizes are multiples of 16 bytes, memory is read by these
        alike = [piece for piece in filled if _is_aligned(piece) is vectors]
        for start in range(0, len(alike), FUSED_PIECES):
            _move_some(alike[start : start + FUSED_PIECES], scalars, found_inf, vectors=vectors)


def _move_some(
    pieces: Sequence[Sequence[Tensor]], scalars: Sequence[np.float32], found_inf: Tensor | None, *, vectors: bool
) -> None:
    device = pieces[0][0].device
    listed = tuple(tuple(piece[index].data_ptr() for piece in pieces) for index in range(4))
    sizes = tuple(piece[0].numel() for piece in pieces)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    table, programs = _listed((*listed, sizes), device, stream)
    with _on(table):
        whole_kernels.step_kernel[(programs,)](
            table,
            len(pieces),
            *map(float, scalars),
            table if found_inf is None else found_inf,
            MASKED=found_inf is not None,
            PIECES=_power_of_2(len(pieces)),
            ELEMENTS=ELEMENTS_A_PROGRAM,
            VECTORS=vectors,
            **EXACT,
        )


def _is_aligned(piece: Sequence[Tensor]) -> bool:
    return piece[0].numel() % 4 == 0 and all(tensor.data_ptr() % 16 == 0 for tensor in piece)


@lru_cache(maxsize=64)
def _listed(listed: tuple[tuple[int, ...], ...], device: torch.device, stream: int) -> tuple[Tensor, int]:
    """Addresses and sizes as `whole.step_kernel` reads them, queued on this stream, and how many programs it takes.

    Kept, since gradients tend to lie where they lay a step before.
    """
    programs = [_cdiv(size, ELEMENTS_A_PROGRAM) for size in listed[-1]]
    begun = np.concatenate([[0], np.cumsum(programs)])
    table = np.array([*listed, begun[:-1]], dtype=np.int64)
    return to_device(torch.from_numpy(table), device), int(begun[-1])


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy of host memory on the device, without waiting for it."""
    if device.type == "cpu":
        return values.clone()
    return values.pin_memory().to(device, non_blocking=True)


def _row_sizes(width: int, taken: int) -> dict[str, Any]:
    columns = _power_of_2(width)
    return {"COLUMNS": columns, "TAKEN": taken, "num_warps": min(max(1, columns // 128), 8), **EXACT}


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _cdiv(count: int, size: int) -> int:
    return -(-count // size)


def _power_of_2(count: int) -> int:
    """The smallest that is not less."""
    return 1 << (count - 1).bit_length()
