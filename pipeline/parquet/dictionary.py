"""Integers → the bodies of Parquet's dictionary-encoded pages: the compiled dictionary and bit packing.

A general writer builds every dictionary with a general hash table; that alone costs as much as parsing and hashing the
log line. Here a row group has at most 65,536 rows, so a code fits 16 bits and one table serves all columns in turn.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from pipeline.compiled import compiled

MAX_PAGE_ROWS = 65_536
_TABLE_BITS, _SHORT_TABLE_BITS = 17, 15
_PREFIX_BYTES = MAX_PAGE_ROWS // 8 + 32
"""Room in front of the packed codes for the definition levels and run headers."""


@dataclass(kw_only=True)
class DictionaryEncoder:
    """Encodes one column of a row group at a time; one encoder a thread."""

    _table: np.ndarray = field(default_factory=lambda: np.zeros(1 << _TABLE_BITS, np.uint64))
    """Slot → generation « 48 | value « 16 | code. A slot of another generation is empty, so the table is cleared only
    once in 65,535 columns."""
    _short_table: np.ndarray = field(default_factory=lambda: np.zeros(1 << _SHORT_TABLE_BITS, np.uint64))
    """The same for columns of few distinct values, which most are: it fits a core's cache beside the column."""
    _small: np.ndarray = field(default_factory=lambda: np.zeros(1 << 16, np.uint32))
    """Value below 65,536 → generation « 16 | code: most columns hold no others, and a quarter of the memory, without
    hashing, takes half the time."""
    _generation: int = 0
    _present: np.ndarray = field(default_factory=lambda: np.empty(MAX_PAGE_ROWS, np.int32))
    _codes: np.ndarray = field(default_factory=lambda: np.empty(MAX_PAGE_ROWS, np.uint16))
    _dictionary: np.ndarray = field(default_factory=lambda: np.empty(MAX_PAGE_ROWS, np.int32))
    _page: np.ndarray = field(default_factory=lambda: np.empty(_PREFIX_BYTES + 2 * MAX_PAGE_ROWS + 64, np.uint8))

    def encode(self, values_R: np.ndarray, present_R: np.ndarray | None) -> tuple[memoryview, memoryview]:
        """The bodies of the dictionary page and of the data page for up to 65,536 integers of int32's range.

        `present_R` (uint8, 0 = null) makes the column an optional one. The bodies are valid until the next call.
        """
        assert len(values_R) <= MAX_PAGE_ROWS
        self._generation += 1
        if self._generation == 1 << 16:
            self._table[:] = self._short_table[:] = self._small[:] = 0
            self._generation = 1
        if present_R is not None:
            values_R = self._present[: _gather(values_R, present_R, self._present)]
        count = len(values_R)
        numbering = self._generation, self._dictionary, self._codes
        if _all_small(values_R):
            distinct = int(_encode_small(values_R, self._small, *numbering))
        elif (distinct := int(_encode(values_R, self._short_table, *numbering))) < 0:
            distinct = int(_encode(values_R, self._table, *numbering))
        width = max(1, (distinct - 1).bit_length())
        groups = -(-count // 8)
        pack(self._codes, count, width, self._page[_PREFIX_BYTES:].view(np.uint64))
        levels = b"" if present_R is None else definition_levels(present_R)
        prefix = levels + bytes([width]) + varint(groups << 1 | 1)
        start = _PREFIX_BYTES - len(prefix)
        self._page[start:_PREFIX_BYTES] = np.frombuffer(prefix, np.uint8)
        data = self._page[start : _PREFIX_BYTES + groups * width].data
        return self._dictionary[:distinct].view(np.uint8).data, data


def definition_levels(present_R: np.ndarray) -> bytes:
    """Which rows are not null, as Parquet's definition levels: their length, then a bit-packed run of one bit a row."""
    packed = np.packbits(present_R, bitorder="little").tobytes()
    run = varint(len(packed) << 1 | 1) + packed
    return struct.pack("<I", len(run)) + run


def varint(value: int) -> bytes:
    """An unsigned integer in base 128, lowest digits first (ULEB128)."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


@compiled
def _gather(values, present, gathered):
    """The present values one after another, and how many: without a branch, which would mispredict at random nulls."""
    count = 0
    for row in range(len(values)):
        gathered[count] = values[row]
        count += present[row]
    return count


@compiled
def _all_small(values):
    """Whether all values are in [0, 65,536)."""
    bits = np.uint32(0)
    for row in range(len(values)):
        bits |= np.uint32(values[row])
    return bits < np.uint32(1 << 16)


@compiled
def _encode_small(values, table, generation, dictionary, codes):
    """`_encode` for values in [0, 65,536), each its own slot."""
    mark = np.uint32(np.uint32(generation) << np.uint32(16))
    distinct = np.uint32(0)
    for row in range(len(values)):
        value = np.uint32(values[row])
        entry = table[value]
        if (entry ^ mark) >= np.uint32(1 << 16):
            entry = mark | distinct
            table[value] = entry
            dictionary[distinct] = np.int32(value)
            distinct += np.uint32(1)
        codes[row] = np.uint16(entry)
    return distinct


@compiled
def _encode(values, table, generation, dictionary, codes):
    """Number the values in the order in which they first appear; how many are distinct, or −1 if they are more than
    half of the slots of `table`, a power of two."""
    slots = np.uint64(len(table))
    mask = slots - np.uint64(1)
    most = len(table) // 2
    distinct = 0
    for row in range(len(values)):
        value = np.int32(values[row])
        key = np.uint64(generation) << np.uint64(32) | np.uint64(np.uint32(value))
        slot = np.uint64(np.uint32(np.uint32(value) * np.uint32(2_654_435_769))) * slots >> np.uint64(32)
        while True:
            entry = table[slot]
            if entry >> np.uint64(16) == key:
                codes[row] = np.uint16(entry)
                break
            if entry >> np.uint64(48) != np.uint64(generation):
                if distinct == most:
                    return -1
                table[slot] = key << np.uint64(16) | np.uint64(distinct)
                dictionary[distinct] = value
                codes[row] = distinct
                distinct += 1
                break
            slot = (slot + np.uint64(1)) & mask
    return distinct


@compiled
def pack(codes, count, width, words):
    """Write `width` bits of each code, lowest first, into `words` (uint64), zeros up to a multiple of eight codes."""
    word = np.uint64(0)
    filled = 0
    at = 0
    for i in range(count):
        code = np.uint64(codes[i])
        word |= code << np.uint64(filled)
        filled += width
        if filled >= 64:
            words[at] = word
            at += 1
            filled -= 64
            word = code >> np.uint64(width - filled) if filled else np.uint64(0)
    words[at] = word
    words[at + 1] = words[at + 2] = np.uint64(0)  # as far as eight codes of 16 bits can reach
