"""Fields → int32, in every spelling that TensorFlow's reader, which defines the encoding, takes for a whole number."""

from __future__ import annotations

import numpy as np
from numba import types

from pipeline.compiled import compiled, inlined

OK, BAD_INTEGER, NOT_WHOLE, BAD_RANGE = range(4)
_PLUS, _MINUS, _POINT, _ZERO, _SPACE, _LOWER_E = b"+-.0 e"
_TAB, _RETURN = b"\t\r"
_ENOUGH = 1 << 40
"""From here on a value is outside int32 whatever follows."""
_strtod = types.ExternalFunction("strtod", types.float64(types.uintp, types.uintp))
"""The C library's, which rounds correctly; of a text that ends in a byte 0, by its address."""


@compiled
def integer(buffer, start, end):
    """The int32 in a field that is not empty, and a code."""
    position = start
    negative = buffer[position] == _MINUS
    if negative:
        position += 1
    if position == end:
        return 0, BAD_INTEGER
    value = 0
    while position < end:
        digit = np.int64(buffer[position]) - _ZERO
        if digit < 0 or digit > 9:
            return whole_number(buffer, start, end)
        if value < _ENOUGH:
            value = value * 10 + digit
        position += 1
    return _in_range(-value if negative else value)


@compiled
def whole_number(buffer, start, end):
    """The int32 that a field stands for whose number may have a plus, a point, an exponent or white space around it,
    and a code. What is not whole is refused, not rounded.

    TensorFlow takes hexadecimal too (0x10); here that is refused, for it hints at a category in the wrong column.
    """
    while start < end and _is_space(buffer[start]):
        start += 1
    while start < end and _is_space(buffer[end - 1]):
        end -= 1
    negative = start < end and buffer[start] == _MINUS
    if start < end and (negative or buffer[start] == _PLUS):
        start += 1
    point = _after_digits(buffer, start, end)
    stop = point
    if point < end and buffer[point] == _POINT:
        stop = _after_digits(buffer, point + 1, end)
    if point == start and stop - point <= 1:  # not a digit on either side
        return 0, BAD_INTEGER
    exponent = 0
    if stop < end:
        exponent, valid = _exponent(buffer, stop, end)
        if not valid:
            return 0, BAD_INTEGER
    # So many of the digits, and zeros after them should they not be enough, lie before the point once it has moved.
    before = point - start + exponent
    value = 0
    for position in range(start, stop):
        if position != point:
            digit = np.int64(buffer[position]) - _ZERO
            if before <= 0 and digit != 0:
                return 0, NOT_WHOLE
            if before > 0 and value < _ENOUGH:
                value = value * 10 + digit
            before -= 1
    while before > 0 and 0 < value < _ENOUGH:
        value *= 10
        before -= 1
    return _in_range(-value if negative else value)


@compiled
def positive_number(buffer, start, end, text):
    """The float32 in a field that is a decimal number above 0, with or without a plus, a point, an exponent or white
    space around it; 0 for anything else. `text` has room for the field and 24 bytes more, and is written to.

    Rounded to float64, then to float32; 0 also for what float32 has only 0 or infinity for.
    """
    while start < end and _is_space(buffer[start]):
        start += 1
    while start < end and _is_space(buffer[end - 1]):
        end -= 1
    if start < end and buffer[start] == _PLUS:
        start += 1
    point = _after_digits(buffer, start, end)
    stop = point
    if point < end and buffer[point] == _POINT:
        stop = _after_digits(buffer, point + 1, end)
    if point == start and stop - point <= 1:  # not a digit on either side
        return np.float32(0)
    shift = point + 1 - stop if stop > point else 0
    if stop < end:
        exponent, valid = _exponent(buffer, stop, end)
        if not valid:
            return np.float32(0)
        shift += exponent
    # without a point, which strtod takes by the locale of whoever runs this
    size = 0
    for position in range(start, stop):
        if position != point:
            text[size] = buffer[position]
            size += 1
    text[size : size + 2] = _LOWER_E, _MINUS if shift < 0 else _PLUS
    left, scale = abs(shift), 1
    while scale * 10 <= left:
        scale *= 10
    size += 2
    while scale > 0:
        text[size] = _ZERO + left // scale % 10
        scale //= 10
        size += 1
    text[size] = 0
    value = np.float32(_strtod(text.ctypes.data, 0))
    return value if value < np.inf else np.float32(0)


@inlined
def _in_range(value):
    return (0, BAD_RANGE) if value < -(1 << 31) or value >= 1 << 31 else (value, OK)


@inlined
def _is_space(byte):
    """Blank, or one of tab, line feed, vertical tab, form feed and carriage return."""
    return byte == _SPACE or _TAB <= byte <= _RETURN


@compiled
def _after_digits(buffer, start, end):
    """The position after the decimal digits from `start` on."""
    while start < end and _ZERO <= buffer[start] <= _ZERO + 9:
        start += 1
    return start


@compiled
def _exponent(buffer, start, end):
    """The number after an `e` at `start`, and whether there is such a thing up to `end`."""
    if buffer[start] | 32 != _LOWER_E:
        return 0, False
    start += 1
    negative = start < end and buffer[start] == _MINUS
    if start < end and (negative or buffer[start] == _PLUS):
        start += 1
    if start == end or _after_digits(buffer, start, end) != end:
        return 0, False
    value = 0
    for position in range(start, end):
        if value < _ENOUGH:  # longer than any line has digits
            value = value * 10 + np.int64(buffer[position]) - _ZERO
    return -value if negative else value, True
