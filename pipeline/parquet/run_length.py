"""Parquet's hybrid of runs and bit-packed indices, decoded through a dictionary."""

from __future__ import annotations

import numpy as np

from pipeline.compiled import compiled, inlined, load_u64

_MOST_BITS = 24  # of an index; row groups are far smaller
TAKEN, OTHERWISE, OUTSIDE = range(3)
"""What `take_from_page` comes to."""


@compiled
def read_varint(raw, at):  # pragma: no cover - compiled
    """(end, value) of the little-endian base-128 number at `at`; end −1 if it does not end in time."""
    value, shift = 0, 0
    while at < raw.size and shift < 63:
        byte = np.int64(raw[at])
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return at, value
        shift += 7
    return -1, 0


@compiled
def fill_page(body, words, optional, out):  # pragma: no cover - compiled
    """`words[index]` for every row of a version 1 data page `body` (uint8), nulls as 0, into `out` (rows,).

    An optional column's page begins with definition levels. False if the page does not hold exactly what it must.
    """
    at = 0
    levels = np.empty(0, np.int32)
    present = out.size
    if optional:
        for b in range(min(4, body.size)):
            at |= np.int64(body[b]) << (8 * b)
        at += 4
        if at > body.size:
            return False
        levels = np.empty(out.size, np.int32)
        if not _fill_runs(body[4:at], 1, np.arange(2).astype(np.int32), levels):
            return False
        present = levels.sum()
    if at >= body.size:
        out[:] = 0
        return present == 0
    width = np.int64(body[at])
    indices = body[at + 1 :]
    if width > _MOST_BITS:
        return False
    if present == out.size:
        return _fill_runs(indices, width, words, out)
    dense = np.empty(present, out.dtype)
    if not _fill_runs(indices, width, words, dense):
        return False
    _spread(dense, levels, out)
    return True


@compiled
def take_from_page(body, words, rows, order, optional, out):  # noqa: PLR0917  # pragma: no cover - compiled
    """`fill_page` for some of a page's `rows` rows alone: `out[i]` is that of row `order[i]`, at no cost for others.

    TAKEN; OTHERWISE, the same for any `order`, unless levels and indices are each one bit-packed run, as our writer has
    them; OUTSIDE if an index of these rows leads out of `words`.
    """
    at, present = 0, rows
    levels = 0
    before = np.empty(0, np.uint32)
    if optional:
        if body.size < 4:
            return OTHERWISE
        for b in range(4):
            at |= np.int64(body[b]) << (8 * b)
        at += 4
        if at > body.size:
            return OTHERWISE
        levels, header = read_varint(body[:at], 4)
        if levels < 0 or header & 1 == 0 or header >> 1 != at - levels or at - levels != (rows + 7) >> 3:
            return OTHERWISE
        before, present = _present_before(body[levels:at], rows)
    if at >= body.size:
        return OTHERWISE
    width = np.int64(body[at])
    start, header = read_varint(body, at + 1)
    if width < 1 or width > _MOST_BITS or start < 0 or header & 1 == 0 or header >> 1 > body.size:
        return OTHERWISE
    end = start + (header >> 1) * width
    if end > body.size or (header >> 1) * 8 < present:
        return OTHERWISE
    if words.size == 0:
        out[:] = 0
        return TAKEN if present == 0 or order.size == 0 else OUTSIDE
    packed = body[start:end]
    if packed.size < 8:
        packed = np.zeros(8, np.uint8)
        packed[: end - start] = body[start:end]
    if optional and present < rows:
        largest = _take_optional(packed, width, words, order, body[levels:at], before, present, out)
    else:
        largest = _take_packed(packed, width, words, order, out)
    return TAKEN if largest < np.uint64(words.size) else OUTSIDE


@compiled
def _take_packed(packed, width, words, order, out):  # pragma: no cover - compiled
    """`words[index]` of the indices at `order` of a bit-packed run; the largest index."""
    largest, last = np.uint64(0), np.uint64(words.size - 1)
    bits, mask, furthest = np.uint64(width), np.uint64((1 << width) - 1), np.uint64(packed.size - 8)
    for i in range(order.size):
        index = _packed_index(packed, np.uint64(order[i]) * bits, mask, furthest)
        largest = max(largest, index)
        out[i] = words[min(index, last)]
    return largest


@compiled
def _take_optional(packed, width, words, order, levels, before, present, out):  # noqa: PLR0917  # pragma: no cover - compiled
    """The same for the rows `order` of a column with nulls: `levels` has a bit for each row, and the values that are
    present follow one another."""
    largest, last = np.uint64(0), np.uint64(words.size - 1)
    bits, mask, furthest = np.uint64(width), np.uint64((1 << width) - 1), np.uint64(packed.size - 8)
    final, one = np.uint64(max(present - 1, 0)), np.uint64(1)
    for i in range(order.size):
        row = np.uint64(order[i])
        byte, bit = np.uint64(levels[row >> np.uint64(3)]), row & np.uint64(7)
        place = np.uint64(before[row >> np.uint64(3)]) + _ones(byte & ((one << bit) - one))
        is_present = byte >> bit & one
        # The clamp is for rows after the last value.
        index = _packed_index(packed, min(place, final) * bits, mask, furthest) * is_present
        largest = max(largest, index)
        out[i] = words[min(index, last)] * np.int32(is_present)
    return largest


@compiled
def _present_before(levels, rows):  # pragma: no cover - compiled
    """How many of `rows` rows are present before each byte of their bits (bytes,), and in all."""
    before = np.empty(levels.size, np.uint32)
    count = np.int64(0)
    for b in range(levels.size):
        before[b] = count
        byte = np.uint64(levels[b])
        if b == levels.size - 1 and rows & 7:
            byte &= np.uint64((1 << (rows & 7)) - 1)
        count += np.int64(_ones(byte))
    return before, count


@inlined
def _ones(byte):  # pragma: no cover - compiled
    """How many bits of a byte are set."""
    byte -= byte >> np.uint64(1) & np.uint64(0x55)
    byte = (byte & np.uint64(0x33)) + (byte >> np.uint64(2) & np.uint64(0x33))
    return byte + (byte >> np.uint64(4)) & np.uint64(0x0F)


@inlined
def _packed_index(packed, bit, mask, furthest):  # pragma: no cover - compiled
    """The number under `mask` that begins at `bit`, by a load at byte `furthest` at the most."""
    at = min(bit >> np.uint64(3), furthest)
    return (load_u64(packed, np.int64(at)) >> (bit - (at << np.uint64(3)))) & mask


@compiled
def _spread(dense, levels, out):  # pragma: no cover - compiled
    """Brings the values that are present to their rows, without a branch, which half of the rows would mispredict."""
    k = 0
    last = dense.size - 1
    for i in range(out.size):
        # The clamp is for rows after the last value.
        out[i] = dense[min(k, last)] * levels[i] if last >= 0 else 0
        k += levels[i]


@compiled
def _fill_runs(body, width, words, out):  # pragma: no cover - compiled
    """`words[index]` for as many indices as `out` has rows; False if they do not lie in `body` or in `words`."""
    at, i = 0, 0
    largest = np.uint64(0)
    padded = _padded(words, 1 << width)
    while i < out.size:
        at, header = read_varint(body, at)
        if at < 0 or header < 2:
            return False
        packed, length = header & 1, header >> 1
        if packed and width > 0 and length > body.size:  # so that no product below overflows
            return False
        end = at + (length * width if packed else (width + 7) // 8)
        if end > body.size:
            return False
        if packed:
            count = min(min(length, out.size) * 8, out.size - i)
            largest = max(largest, _fill_packed(body, at, width, padded, out[i : i + count]))
        else:
            count = min(length, out.size - i)
            index = np.uint64(0)
            for b in range(end - at):
                index |= np.uint64(body[at + b]) << np.uint64(8 * b)
            if index >= words.size:
                return False
            out[i : i + count] = words[index]
        at = end
        i += count
    return out.size == 0 or largest < words.size


@compiled
def _padded(words, count):  # pragma: no cover - compiled
    """At least `count` words, so that no index of that many bits leads out of the array."""
    if words.size >= count:
        return words
    padded = np.zeros(count, words.dtype)
    padded[: words.size] = words
    return padded


@compiled
def _fill_packed(body, at, width, words, out):  # pragma: no cover - compiled
    """`words[index]` of the indices of `width` bits each from byte `at` on; the largest index."""
    bits, one = np.uint64(width), np.uint64(1)
    mask = (one << bits) - one
    largest = np.uint64(0)
    # A whole word may be loaded as long as it ends within the body.
    quick = min(out.size, max((body.size - 8 - at) * 8 // max(width, 1), 0))
    bit = np.uint64(0)
    for i in range(quick):
        index = (load_u64(body, at + np.int64(bit >> np.uint64(3))) >> (bit & np.uint64(7))) & mask
        largest = max(largest, index)
        out[i] = words[index]
        bit += bits
    for i in range(quick, out.size):
        index = np.uint64(0)
        for b in range(width):
            place = i * width + b
            index |= np.uint64((body[at + (place >> 3)] >> (place & 7)) & 1) << np.uint64(b)
        largest = max(largest, index)
        out[i] = words[index]
    return largest
