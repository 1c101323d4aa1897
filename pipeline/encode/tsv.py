"""Bytes of a delimited log → columns: what the kernel needs to know of a format, and why it rejected a line.

One pass over the bytes does everything: it splits the line, parses the integers, hashes the categories, reduces each
hash to its bucket and feeds the distinct counts.
"""

from __future__ import annotations

import re

import numpy as np

from pipeline.encode.farmhash import fingerprint64
from pipeline.encode.kernel import (
    BAD_CATEGORY,
    BAD_LABEL,
    BAD_WEIGHT,
    DENSE,
    DISTINCT_PRECISION,
    EMPTY_LINE,
    F_DEFAULT_HASH,
    F_KIND,
    F_QUICK,
    F_SLOT,
    F_SUFFIX,
    F_SUFFIX_BITS,
    F_TERMINATOR,
    KEEP_ALL,
    LABEL,
    SPARSE,
    WEIGHT,
    WRONG_FIELDS,
    Group,
    Layout,
    Negatives,
    Rejects,
    Scratch,
    Tally,
    parse_lines,
)
from pipeline.encode.numbers import BAD_INTEGER, BAD_RANGE, NOT_WHOLE
from pipeline.line_buffer import MAX_LINE_BYTES, PADDING_BYTES
from pipeline.schema import LogFormat

__all__ = [
    "DISTINCT_PRECISION",
    "Group",
    "Layout",
    "Negatives",
    "Rejects",
    "Scratch",
    "Tally",
    "hash_bytes",
    "keep_negatives",
    "make_group",
    "make_layout",
    "make_rejects",
    "make_scratch",
    "make_tally",
    "parse",
    "reason",
]  # fmt: skip

_NOT_FINITE = re.compile(r"\s*[+-]?(inf|infinity|nan)\s*", re.ASCII | re.IGNORECASE)


def make_layout(log_format: LogFormat) -> Layout:
    """The kernel's tables for a format."""
    literals = [literal.encode() for literal in log_format.missing if literal]
    starts_missing = np.zeros(256, np.bool_)
    starts_missing[[literal[0] for literal in literals]] = True
    fields = np.zeros((len(log_format.columns), 8), np.uint64)
    fields[:, F_TERMINATOR] = ord(log_format.delimiter)
    fields[-1, F_TERMINATOR] = ord("\n")
    for field, name in enumerate(log_format.columns):
        if name == log_format.label:
            fields[field, F_KIND] = LABEL
        elif name == log_format.weight:
            fields[field, F_KIND] = WEIGHT
        elif name in log_format.dense:
            fields[field, F_KIND] = DENSE
            fields[field, F_SLOT] = log_format.dense.index(name)
            fields[field, F_QUICK] = not any(literal.isdigit() for literal in literals)
        elif name in log_format.sparse:
            slot = log_format.sparse.index(name)
            suffix = str(slot).encode()
            fields[field, F_KIND] = SPARSE
            fields[field, F_SLOT] = slot
            fields[field, F_QUICK] = log_format.hexadecimal and not any(len(literal) == 8 for literal in literals)
            fields[field, F_SUFFIX] = int.from_bytes(suffix, "little")
            fields[field, F_SUFFIX_BITS] = 8 * len(suffix)
            fields[field, F_DEFAULT_HASH] = hash_bytes(log_format.default_category.encode() + suffix)
    sizes = log_format.bucket_sizes
    return Layout(
        fields=fields,
        delimiter=ord(log_format.delimiter),
        hexadecimal=log_format.hexadecimal,
        starts_missing=starts_missing,
        missing=np.frombuffer(b"".join(literals), np.uint8).copy(),
        missing_ends=np.cumsum([len(literal) for literal in literals], dtype=np.int64),
        reductions=np.array([(size, min(2**64 // size, 2**64 - 1)) for size in sizes], np.uint64).reshape(-1, 2),
    )


def hash_bytes(text: bytes) -> int:
    """FarmHash Fingerprint64 of `text`."""
    return int(fingerprint64(np.frombuffer(text + bytes(PADDING_BYTES), np.uint8).copy(), len(text)))


def make_group(log_format: LogFormat, rows: int) -> Group:
    """Room for `rows` rows.

    The columns are a few cache lines longer than that: were they a power of two apart, a row's cells would all compete
    for the same few places in the cache.
    """
    dense, sparse = len(log_format.dense), len(log_format.sparse)
    return Group(
        label=np.empty(rows, np.uint8),
        dense=np.empty((dense, rows + 5 * 16), np.int32),
        present=np.empty((dense, rows + 5 * 64), np.uint8),
        buckets=np.empty((sparse, rows + 5 * 16), np.int32),
        weight=np.empty(rows if log_format.weight else 0, np.float32),
    )


def make_tally(log_format: LogFormat) -> Tally:
    """All counts at zero."""
    sparse = len(log_format.sparse)
    return Tally(missing=np.zeros(sparse, np.int64), registers=np.zeros((sparse, 1 << DISTINCT_PRECISION), np.uint8))


def make_rejects(room: int = 1024) -> Rejects:
    """Room for `room` lines; the kernel hands control back when it is used up."""
    return Rejects(*(np.empty(room, np.int64) for _ in range(5)))


def make_scratch(log_format: LogFormat) -> Scratch:
    """Working memory for one thread."""
    sparse = len(log_format.sparse)
    return Scratch(
        hashes=np.empty(sparse, np.uint64),
        absent=np.empty(sparse, np.bool_),
        text=np.zeros(2 * MAX_LINE_BYTES + 2 * PADDING_BYTES, np.uint8),
    )


_ALL = Negatives(np.uint64(0), np.uint64(0), np.uint64(KEEP_ALL))
_SEED = 0


def keep_negatives(share: float, *, source: int, first_line: int) -> Negatives:
    """Keeps each row of label 0 with probability `share`, 0 to 1, of the lines from `first_line` on of the log at place
    `source` among those of all generations."""
    if share >= 1.0:
        return _ALL
    (key,) = np.random.SeedSequence([_SEED, source]).generate_state(1, np.uint64)
    return Negatives(key, np.uint64(first_line), np.uint64(round(share * KEEP_ALL)))


def parse(  # noqa: PLR0917
    buffer: np.ndarray,
    start: int,
    stop: int,
    layout: Layout,
    group: Group,
    row: int,
    tally: Tally,
    rejects: Rejects,
    scratch: Scratch,
    negatives: Negatives = _ALL,
) -> tuple[int, int, int, int]:
    """See `kernel.parse_lines`; by default every row is kept."""
    return parse_lines(buffer, start, stop, layout, group, row, tally, rejects, scratch, negatives)


def reason(log_format: LogFormat, code: int, field: int, line: bytes) -> str:
    """Why the kernel rejected `line` (without its line end)."""
    if code == EMPTY_LINE:
        return "empty line"
    if code == WRONG_FIELDS:
        count = line.count(log_format.delimiter.encode()) + 1
        return f"{count} fields instead of {len(log_format.columns)}"
    text = line.split(log_format.delimiter.encode())[field].decode("utf-8", "backslashreplace")
    shown = text if len(text) <= 32 else f"{text[:29]}..."
    problem = {
        BAD_LABEL: "is neither 0 nor 1",
        BAD_INTEGER: "is not finite" if _NOT_FINITE.fullmatch(text) else "is not an integer",
        NOT_WHOLE: "is not a whole number",
        BAD_RANGE: "is outside int32",
        BAD_CATEGORY: "is not hexadecimal",
        BAD_WEIGHT: "is not a positive number",
    }[code]
    return f"{log_format.columns[field]} {shown!r} {problem}"
