"""Line ends in a buffer, counted and found at the speed of memory."""

from __future__ import annotations

import numpy as np

from pipeline.compiled import compiled, load_u64

_NEWLINE = 10
_ONES = np.uint64(0x0101010101010101)


@compiled
def count_newlines(buffer, start, stop):
    """How many line ends lie in `buffer[start:stop]`.

    Eight bytes at a time: a byte equal to the line end becomes a 1 in its lane, and lanes are summed before they can
    overflow. (d & 7F) + 7F carries into the high bit unless the low bits of d are zero, hence no carry leaves a lane.
    """
    low_bits = np.uint64(0x7F) * _ONES
    even_lanes = np.uint64(0x00FF00FF00FF00FF)
    count = np.uint64(0)
    position = start
    while stop - position >= 8:
        words = min((stop - position) // 8, 255)
        lanes = np.uint64(0)
        for i in range(words):
            difference = load_u64(buffer, position + 8 * i) ^ (np.uint64(_NEWLINE) * _ONES)
            lanes += ~(((difference & low_bits) + low_bits) | difference | low_bits) >> np.uint64(7)
        pairs = (lanes & even_lanes) + ((lanes >> np.uint64(8)) & even_lanes)
        count += (pairs * np.uint64(0x0001000100010001)) >> np.uint64(48)
        position += 8 * words
    while position < stop:
        count += np.uint64(buffer[position] == _NEWLINE)
        position += 1
    return np.int64(count)


@compiled
def after_last_newline(buffer, start, stop):
    """The position after the last line end in `buffer[start:stop]`, or `start` if there is none."""
    position = stop
    while position > start and buffer[position - 1] != _NEWLINE:
        position -= 1
    return position


@compiled
def after_newlines(buffer, start, stop, lines):
    """The position after the `lines`-th line end from `start` (or `stop`), and how many were found before it."""
    found = 0
    position = start
    while position < stop and found < lines:
        end = min(position + 2048, stop)
        here = count_newlines(buffer, position, end)
        if found + here < lines:
            found += here
            position = end
            continue
        while found < lines:
            found += buffer[position] == _NEWLINE
            position += 1
    return position, found
