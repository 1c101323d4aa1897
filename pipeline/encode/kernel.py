"""The compiled kernel: whole lines in a buffer → columns, hashes reduced to buckets, distinct counts, rejects.

Letters: R rows, D dense columns, S sparse columns, M registers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.compiled import compiled, inlined, load_u64
from pipeline.encode.farmhash import (
    fingerprint64,
    hash_8_to_16,
    high_product,
    leading_zeros,
    load_u8,
    trailing_zeros,
)
from pipeline.encode.numbers import BAD_RANGE, OK, integer, positive_number

DISTINCT_PRECISION = 12
"""Base-2 logarithm of M, the HyperLogLog registers of a category: a standard error of 1.04 / √4096 = 1.6 %."""

IGNORED, LABEL, DENSE, SPARSE, WEIGHT = range(5)
EMPTY_LINE, WRONG_FIELDS, BAD_LABEL, BAD_CATEGORY, BAD_WEIGHT = range(BAD_RANGE + 1, BAD_RANGE + 6)
KEEP_ALL = 1 << 53
"""`Negatives.kept_below` that leaves out none."""
# What the quick and the thorough path need to know of a field: see Layout.fields. The quick one takes eight
# hexadecimal digits as a category that is present, and up to seven decimal ones as an integer that is.
F_KIND, F_SLOT, F_TERMINATOR, F_QUICK, F_SUFFIX, F_SUFFIX_BITS, F_DEFAULT_HASH = range(7)
_NEWLINE, _RETURN, _ZERO = 10, 13, 48
_ONES = np.uint64(0x0101010101010101)
_HIGH_BITS = np.uint64(0x80) * _ONES


class Layout(NamedTuple):
    """A LogFormat as the kernel wants it: one entry a field of the line, one an entry of `sparse`."""

    fields: np.ndarray
    """(fields, 8) uint64, a row a field of the line, in the order of the `F_` names."""
    delimiter: int
    hexadecimal: bool
    starts_missing: np.ndarray
    """For each byte, whether a literal that means missing begins with it."""
    missing: np.ndarray
    missing_ends: np.ndarray
    reductions: np.ndarray
    """(S, 2) uint64: buckets, and ⌊2⁶⁴ / buckets⌋, which turns the modulo into a multiplication."""


class Group(NamedTuple):
    """Columns of up to R rows, filled from the front."""

    label: np.ndarray
    """(R,) uint8"""
    dense: np.ndarray
    """(D, ≥ R) int32, 0 if missing"""
    present: np.ndarray
    """(D, ≥ R) uint8, 0 = missing"""
    buckets: np.ndarray
    """(S, ≥ R) int32"""
    weight: np.ndarray
    """(R,) float32, or (0,) of a format without weights"""


class Tally(NamedTuple):
    """What the kernel counts while it parses."""

    missing: np.ndarray
    """(S,) int64: rows whose category is missing."""
    registers: np.ndarray
    """(S, M) uint8: HyperLogLog registers of the hashes of the categories that are present."""


class Negatives(NamedTuple):
    """Which rows of label 0 are kept, at random: a function of the line's place alone."""

    key: np.uint64
    """Of the log; lines of equal place in logs of different keys are drawn apart."""
    first_line: np.uint64
    """The place of the first line that is parsed."""
    kept_below: np.uint64
    """A row is kept whose draw, uniform over 53 bits, is below; 2⁵³: all are."""


class Rejects(NamedTuple):
    """Lines that could not be used: where each lies in the buffer, its number in the piece, and what is wrong."""

    starts: np.ndarray
    stops: np.ndarray
    lines: np.ndarray
    codes: np.ndarray
    fields: np.ndarray


class Scratch(NamedTuple):
    """Working memory of one kernel call."""

    hashes: np.ndarray
    absent: np.ndarray
    text: np.ndarray


@inlined
def _is_hexadecimal_word(word):
    """Whether all eight bytes are hexadecimal digits. No sum below carries from one byte into the next."""
    lower = word | (np.uint64(0x20) * _ONES)
    digit = (word + np.uint64(0x50) * _ONES) & ~(word + np.uint64(0x46) * _ONES)
    letter = (lower + np.uint64(0x1F) * _ONES) & ~(lower + np.uint64(0x19) * _ONES)
    return (word & _HIGH_BITS) == 0 and ((digit | letter) & _HIGH_BITS) == _HIGH_BITS


@inlined
def _bytes_before(word, terminator):
    """How many of the eight bytes, from the lowest, come before the first `terminator`; 8 if there is none."""
    difference = word ^ (np.uint64(terminator) * _ONES)
    return trailing_zeros((difference - _ONES) & ~difference & _HIGH_BITS) >> np.uint64(3)


@inlined
def _seven_digits(word, length):
    """The decimal number in the lowest `length` (0 to 7) bytes, and whether they are all digits.

    The digits are moved up behind leading zeros, then summed in pairs, fours and eights by one multiplication each.
    """
    bits = np.uint64(8) * length
    text = ((word << np.uint64(8)) << (np.uint64(56) - bits)) | ((np.uint64(0x30) * _ONES) >> bits)
    high_halves = np.uint64(0xF0) * _ONES
    above_nine = ((text + np.uint64(6) * _ONES) & high_halves) >> np.uint64(4)
    valid = (text & high_halves) | above_nine == np.uint64(0x33) * _ONES
    pairs = ((text & (np.uint64(0x0F) * _ONES)) * np.uint64(2561)) >> np.uint64(8)
    fours = ((pairs & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(6553601)) >> np.uint64(16)
    return ((fours & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(42949672960001)) >> np.uint64(32), valid


@inlined
def _is_hexadecimal(byte):
    return 48 <= byte <= 57 or 65 <= byte <= 70 or 97 <= byte <= 102


@compiled
def _is_missing(buffer, start, end, layout):
    """Whether the field is one of the literals that mean missing."""
    first = 0
    for ending in layout.missing_ends:
        if ending - first == end - start:
            same = True
            for i in range(end - start):
                same &= buffer[start + i] == layout.missing[first + i]
            if same:
                return True
        first = ending
    return False


@compiled
def _hash_field(buffer, start, end, layout, field, scratch):  # noqa: PLR0917
    """Fingerprint64 of a field of any length and the decimal of its column; code BAD_CATEGORY if it may not be."""
    n = end - start
    for i in range(n):
        byte = buffer[start + i]
        if layout.hexadecimal and not _is_hexadecimal(byte):
            return np.uint64(0), BAD_CATEGORY
        scratch.text[i] = byte
    suffix = layout.fields[field, F_SUFFIX]
    digits = np.int64(layout.fields[field, F_SUFFIX_BITS] >> np.uint64(3))
    for i in range(digits):
        scratch.text[n + i] = np.uint8((suffix >> np.uint64(8 * i)) & np.uint64(0xFF))
    return fingerprint64(scratch.text, n + digits), OK


@inlined
def _bucket(value, size, reciprocal):
    """`value` mod `size`: ⌊value · ⌊2⁶⁴/size⌋ / 2⁶⁴⌋ is the quotient or one below it."""
    remainder = value - high_product(value, reciprocal) * size
    return remainder - size if remainder >= size else remainder


@inlined
def _parse_line(buffer, start, layout, group, row, scratch):  # noqa: PLR0912, PLR0915, PLR0917
    """Fill `row` from the line at `start`, its hashes into `scratch`: (a position within the line, code, field).

    Real fields are eight hexadecimal digits, up to seven decimal ones, or empty, at random: a branch on which would
    mispredict in every other line. So these take one path that selects, and only the rest takes another.
    """
    position = start
    fields = layout.fields.shape[0]
    for field in range(fields):
        # Unsigned, for a signed index may count from the end, which would be asked at every access.
        slot = layout.fields[field, F_SLOT]
        kind = layout.fields[field, F_KIND]
        if layout.fields[field, F_QUICK]:
            terminator = layout.fields[field, F_TERMINATOR]
            word = load_u64(buffer, position)
            if kind == SPARSE:
                empty = (word & np.uint64(0xFF)) == terminator
                if empty | (_is_hexadecimal_word(word) & (load_u8(buffer, position + 8) == terminator)):
                    bits = layout.fields[field, F_SUFFIX_BITS]
                    last = (word >> bits) | (layout.fields[field, F_SUFFIX] << (np.uint64(64) - bits))
                    value = hash_8_to_16(word, last, np.uint64(8) + (bits >> np.uint64(3)))
                    scratch.hashes[slot] = layout.fields[field, F_DEFAULT_HASH] if empty else value
                    scratch.absent[slot] = empty
                    position += 1 if empty else 9
                    continue
            else:
                length = _bytes_before(word, terminator)
                if length < 8:
                    value, valid = _seven_digits(word, length)
                    if valid:
                        group.dense[slot, row] = value
                        group.present[slot, row] = length != 0
                        position += np.int64(length) + 1
                        continue
        end = position
        while buffer[end] != layout.delimiter and buffer[end] != _NEWLINE:
            end += 1
        if (buffer[end] == _NEWLINE) != (field == fields - 1):
            return position, WRONG_FIELDS, field
        following = end + 1
        if buffer[end] == _NEWLINE and end > position and buffer[end - 1] == _RETURN:
            end -= 1
        missing = end == position or (
            layout.starts_missing[buffer[position]] and _is_missing(buffer, position, end, layout)
        )
        if kind == DENSE:
            group.present[slot, row] = not missing
            group.dense[slot, row] = 0
            if not missing:
                value, code = integer(buffer, position, end)
                if code != OK:
                    return position, code, field
                group.dense[slot, row] = value
        elif kind == SPARSE:
            scratch.absent[slot] = missing
            if missing:
                scratch.hashes[slot] = layout.fields[field, F_DEFAULT_HASH]
            else:
                scratch.hashes[slot], code = _hash_field(buffer, position, end, layout, field, scratch)
                if code != OK:
                    return position, code, field
        elif kind == LABEL:
            value = 0 if missing else np.int64(buffer[position]) - _ZERO
            if not missing and (end - position != 1 or value < 0 or value > 1):
                value, code = integer(buffer, position, end)
                if code != OK or value < 0 or value > 1:
                    return position, BAD_LABEL, field
            group.label[row] = value
        elif kind == WEIGHT:
            weight = np.float32(0) if missing else positive_number(buffer, position, end, scratch.text)
            if weight == 0:
                return position, BAD_WEIGHT, field
            group.weight[row] = weight
        position = following
    return position, OK, 0


@inlined
def _draw(negatives, line):
    """Uniform over 53 bits: the SplitMix64 generator's output of this place in its sequence (Steele et al. 2014)."""
    z = negatives.key + (negatives.first_line + np.uint64(line) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(11)


@compiled
def parse_lines(buffer, start, stop, layout, group, row, tally, rejects, scratch, negatives):  # noqa: PLR0917
    """Parse whole lines of `buffer[start:stop]` into `group` from `row` on.

    `buffer[stop - 1]` must be a line end, and PADDING_BYTES must follow `stop`. Stops at `stop`, when `group` is full
    or when `rejects` is. Returns (position, row, lines taken, rejects), `rejects.lines` counted from 0; lines taken
    that are neither among the rows nor among the rejects are the rows of label 0 that `negatives` leaves out, which
    nothing counts.
    """
    position = start
    capacity = group.label.shape[0]
    room = rejects.starts.shape[0]
    sparse = np.uint64(layout.reductions.shape[0])
    drops = negatives.kept_below < KEEP_ALL
    lines = 0
    rejected = 0
    while position < stop and row < capacity and rejected < room:
        line_start = position
        position, code, field = _parse_line(buffer, line_start, layout, group, np.uint64(row), scratch)
        if drops and code == OK and group.label[row] == 0 and _draw(negatives, lines) >= negatives.kept_below:
            pass
        elif code == OK:
            for slot in range(sparse):
                value = scratch.hashes[slot]
                bucket = _bucket(value, layout.reductions[slot, 0], layout.reductions[slot, 1])
                group.buckets[slot, np.uint64(row)] = bucket
                absent = scratch.absent[slot]
                tally.missing[slot] += absent
                register = value & np.uint64((1 << DISTINCT_PRECISION) - 1)
                rank = leading_zeros(value >> np.uint64(DISTINCT_PRECISION)) - np.uint64(DISTINCT_PRECISION - 1)
                rank = np.uint64(0) if absent else rank
                tally.registers[slot, register] = max(tally.registers[slot, register], rank)
            row += 1
        else:
            while buffer[position] != _NEWLINE:
                position += 1
            end = position - 1 if position > line_start and buffer[position - 1] == _RETURN else position
            position += 1
            rejects.starts[rejected] = line_start
            rejects.stops[rejected] = end
            rejects.lines[rejected] = lines
            rejects.codes[rejected] = code if end > line_start else EMPTY_LINE
            rejects.fields[rejected] = field
            rejected += 1
        lines += 1
    return position, row, lines, rejected
