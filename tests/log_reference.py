"""What a log line means, in plain Python straight from the rules: the kernel's reference, slow and obvious."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from pipeline.schema import LogFormat

MASK = 2**64 - 1
K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def rotate(value: int, bits: int) -> int:
    return (value >> bits | value << (64 - bits)) & MASK


def word(text: bytes, at: int, size: int = 8) -> int:
    return int.from_bytes(text[at : at + size], "little")


def shift_mix(value: int) -> int:
    return (value ^ value >> 47) & MASK


def pair(u: int, v: int, factor: int) -> int:
    a = shift_mix((u ^ v) * factor & MASK)
    b = shift_mix((v ^ a) * factor & MASK)
    return b * factor & MASK


def fingerprint64(s: bytes) -> int:
    """FarmHash Fingerprint64 of any bytes."""
    n = len(s)
    factor = K2 + 2 * n & MASK
    if n == 0:
        return K2
    if n < 4:
        y = s[0] + (s[n >> 1] << 8)
        z = n + (s[n - 1] << 2)
        return shift_mix((y * K2 ^ z * K0) & MASK) * K2 & MASK
    if n < 8:
        return pair(n + (word(s, 0, 4) << 3), word(s, n - 4, 4), factor)
    if n <= 16:
        a, b = word(s, 0) + K2 & MASK, word(s, n - 8)
        return pair(rotate(b, 37) * factor + a & MASK, (rotate(a, 25) + b) * factor & MASK, factor)
    if n <= 32:
        a, b = word(s, 0) * K1 & MASK, word(s, 8)
        c, d = word(s, n - 8) * factor & MASK, word(s, n - 16) * K2 & MASK
        u = rotate(a + b & MASK, 43) + rotate(c, 30) + d
        return pair(u & MASK, a + rotate(b + K2 & MASK, 18) + c & MASK, factor)
    if n <= 64:
        a, b = word(s, 0) * K2 & MASK, word(s, 8)
        c, d = word(s, n - 8) * factor & MASK, word(s, n - 16) * K2 & MASK
        y = rotate(a + b & MASK, 43) + rotate(c, 30) + d & MASK
        z = pair(y, a + rotate(b + K2 & MASK, 18) + c & MASK, factor)
        e, f = word(s, 16) * factor & MASK, word(s, 24)
        g, h = (y + word(s, n - 32)) * factor & MASK, (z + word(s, n - 24)) * factor & MASK
        u = rotate(e + f & MASK, 43) + rotate(g, 30) + h
        return pair(u & MASK, e + rotate(f + a & MASK, 18) + g & MASK, factor)
    return _fingerprint_of_many(s)


def _weak(s: bytes, a: int, b: int) -> tuple[int, int]:
    w, x, y, z = (word(s, at) for at in (0, 8, 16, 24))
    a = a + w & MASK
    b = rotate(b + a + z & MASK, 21)
    c = a
    a = a + x + y & MASK
    return a + z & MASK, b + rotate(a, 44) + c & MASK


def _fingerprint_of_many(s: bytes) -> int:
    x = 81
    y = x * K1 + 113 & MASK
    z = shift_mix(y * K2 + 113 & MASK) * K2 & MASK
    v, w = (0, 0), (0, 0)
    x = x * K2 + word(s, 0) & MASK
    for t in (s[at : at + 64] for at in range(0, (len(s) - 1) // 64 * 64, 64)):
        x = rotate(x + y + v[0] + word(t, 8) & MASK, 37) * K1 & MASK
        y = rotate(y + v[1] + word(t, 48) & MASK, 42) * K1 & MASK
        x ^= w[1]
        y = y + v[0] + word(t, 40) & MASK
        z = rotate(z + w[0] & MASK, 33) * K1 & MASK
        v = _weak(t, v[1] * K1 & MASK, x + w[0] & MASK)
        w = _weak(t[32:], z + w[1] & MASK, y + word(t, 16) & MASK)
        x, z = z, x
    t = s[-64:]
    factor = K1 + ((z & 255) << 1) & MASK
    w = (w[0] + (len(s) - 1 & 63) & MASK, w[1])
    v = (v[0] + w[0] & MASK, v[1])
    w = (w[0] + v[0] & MASK, w[1])
    x = rotate(x + y + v[0] + word(t, 8) & MASK, 37) * factor & MASK
    y = rotate(y + v[1] + word(t, 48) & MASK, 42) * factor & MASK
    x ^= w[1] * 9 & MASK
    y = y + v[0] * 9 + word(t, 40) & MASK
    z = rotate(z + w[0] & MASK, 33) * factor & MASK
    v = _weak(t, v[1] * factor & MASK, x + w[0] & MASK)
    w = _weak(t[32:], z + w[1] & MASK, y + word(t, 16) & MASK)
    x, z = z, x
    first = pair(v[0], w[0], factor) + shift_mix(y) * K0 + z & MASK
    return pair(first, pair(v[1], w[1], factor) + x & MASK, factor)


@dataclass(frozen=True)
class Row:
    """One encoded line; None in `dense` is missing."""

    label: int
    dense: tuple[int | None, ...]
    buckets: tuple[int, ...]


def read_log(text: bytes, log_format: LogFormat) -> tuple[list[Row], list[tuple[int, str]]]:
    """All rows of a log without header, and (line number from 1, reason) of every line that cannot be used."""
    rows, rejects = [], []
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line end is not a line
    for number, line in enumerate(lines, start=1):
        row = read_line(line.removesuffix(b"\r"), log_format)
        if isinstance(row, str):
            rejects.append((number, row))
        else:
            rows.append(row)
    return rows, rejects


def whole_number(field: bytes) -> int | str:
    """The integer that a field stands for, or what is wrong with it."""
    text = field.decode("latin-1").strip(" \t\n\v\f\r")
    if re.fullmatch(r"[+-]?(inf|infinity|nan)", text, re.IGNORECASE):
        return "is not finite"
    found = re.fullmatch(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?[0-9]+))?", text)
    if not found:
        return "is not an integer"
    negative, digits, exponent = Decimal(found[1]).as_tuple()
    assert isinstance(exponent, int)
    exponent += int(found[2] or 0)
    significant = "".join(map(str, digits)).lstrip("0")
    if not significant:
        return 0
    exponent += len(significant) - len(significant.rstrip("0"))
    significant = significant.rstrip("0")
    if exponent < 0:
        return "is not a whole number"
    value = int(significant[:20]) * 10 ** min(exponent, 20) * (-1 if negative else 1)
    return value if -(2**31) <= value < 2**31 else "is outside int32"


def read_line(line: bytes, log_format: LogFormat) -> Row | str:
    """The row of a line without its end, or why there is none: the first offending field in line order."""
    if not line:
        return "empty line"
    fields = line.split(log_format.delimiter.encode())
    missing = {b"", *(literal.encode() for literal in log_format.missing)}
    label, dense, buckets = 0, {}, {}
    for position, name in enumerate(log_format.columns):
        if position == len(fields) or (position == len(log_format.columns) - 1 and len(fields) > position + 1):
            return f"{len(fields)} fields instead of {len(log_format.columns)}"
        field = fields[position]
        if position == len(fields) - 1 and len(fields) < len(log_format.columns):
            return f"{len(fields)} fields instead of {len(log_format.columns)}"
        if name == log_format.label:
            label = 0 if field in missing else whole_number(field)
            if label not in (0, 1):
                return f"{name} is neither 0 nor 1"
        elif name in log_format.dense:
            if field in missing:
                dense[name] = None
            elif isinstance(value := whole_number(field), str):
                return f"{name} {value}"
            else:
                dense[name] = value
        elif name in log_format.sparse:
            j = log_format.sparse.index(name)
            if field in missing:
                field = log_format.default_category.encode()
            elif log_format.hexadecimal and not re.fullmatch(rb"[0-9a-fA-F]+", field):
                return f"{name} is not hexadecimal"
            buckets[name] = fingerprint64(field + str(j).encode()) % log_format.bucket_sizes[j]
    return Row(
        label, tuple(dense[name] for name in log_format.dense), tuple(buckets[name] for name in log_format.sparse)
    )
