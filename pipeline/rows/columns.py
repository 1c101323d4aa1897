"""Columns of a row group: encoded as the model takes them, and taken in a given order."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.rows.choices import Moduli

_TABULATED = 8192
_MIXED_AT_ONCE = 8192


def logarithms(values: NDArray[np.int32]) -> NDArray[np.float32]:
    """log(max(x, 0) + 1) of values (n,), rounded to float32 before the logarithm as AlgoPerf does."""
    out = np.empty(len(values), np.float32)
    _fill_logarithms(values, _small_logarithms(), out)
    return out


def rows_of_table(buckets: NDArray[np.int32], table_rows: int) -> NDArray[np.int32]:
    """int32(float32(bucket)) mod table_rows of buckets (n,): the rounding is AlgoPerf's, so buckets above 2²⁴ land on
    multiples of 2 or 4."""
    out = np.empty(len(buckets), np.int32)
    _fill_rows_of_table(buckets, table_rows, 1.0 / table_rows, out)
    return out


def moduli_of(table_rows: Moduli, columns: int) -> tuple[int, ...]:
    """One number for each of the sparse columns."""
    each = (table_rows,) * columns if isinstance(table_rows, int) else table_rows
    assert len(each) == columns, f"{len(each)} numbers for {columns} columns"
    return each


def encoded_columns(
    label: NDArray[np.uint8], dense: NDArray[np.int32], buckets: NDArray[np.int32], *, table_rows: Moduli
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Label (R,), dense (D, R) and buckets (S, R) of rows as the model takes them, in memory of their own: labels as
    float32, the bits of float32 logarithms, table rows."""
    logs, ids = np.empty(dense.shape, np.int32), np.empty(buckets.shape, np.int32)
    for out, values in zip(logs, dense, strict=True):
        out[:] = logarithms(values).view(np.int32)
    for out, values, rows in zip(ids, buckets, moduli_of(table_rows, len(buckets)), strict=True):
        out[:] = rows_of_table(values, rows)
    return label.astype(np.float32), logs, ids


@compiled
def take_rows(source, order, out):  # pragma: no cover - compiled
    """`out[i] = source[order[i]]` for source (n,), order (m,) unsigned (a signed index is tested for being negative
    at every row), out (m,)."""
    for i in range(order.size):
        out[i] = source[order[i]]


@compiled
def mix_rows(source, places, out):  # pragma: no cover - compiled
    """`out[:, i] = source[:, places[i]]` for source (C, n), places (m,) unsigned, out (C, m).

    Meant for places that move forward in a few streams: a stretch of them stays in cache while all columns are read.
    """
    for start in range(0, places.size, _MIXED_AT_ONCE):
        some = places[start : start + _MIXED_AT_ONCE]
        for c in range(source.shape[0]):
            take_rows(source[c], some, out[c, start : start + _MIXED_AT_ONCE])


@cache
def _small_logarithms() -> NDArray[np.float32]:
    """log(x + 1) of the small integers that most of a click log is made of."""
    table = np.empty(_TABULATED, np.float32)
    _fill_logarithms(np.arange(_TABULATED, dtype=np.int32), table[:0], table)
    return table


@compiled
def _fill_logarithms(values, table, out):  # pragma: no cover - compiled
    one = np.float32(1)
    for i in range(values.size):
        x = max(values[i], 0)
        out[i] = table[x] if x < table.size else math.log(np.float32(x) + one)


@compiled
def _fill_rows_of_table(buckets, table_rows, inverse, out):  # pragma: no cover - compiled
    modulus = np.int32(table_rows)
    for i in range(buckets.size):
        x = np.int32(np.float32(buckets[i]))
        # The quotient by a float64 reciprocal is at most 1 off, and has no division to wait for.
        rest = np.int32(x - np.int32(x * inverse) * modulus)
        rest = rest + modulus if rest < 0 else rest
        out[i] = rest - modulus if rest >= modulus else rest
