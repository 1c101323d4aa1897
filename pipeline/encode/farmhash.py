"""FarmHash Fingerprint64 and the 64-bit arithmetic under it, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipeline.compiled import compiled, inlined, load_u64

K0 = np.uint64(0xC3A5C85C97CB3127)
K1 = np.uint64(0xB492B66FBE98F273)
K2 = np.uint64(0x9AE16A3B2F90404F)


def _load_u8(typing_context, array, position):
    """The byte of a contiguous uint8 array at `position`, which may not be negative, as a uint64; no bounds check."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.zext(builder.load(builder.gep(data, [arguments[1]])), ir.IntType(64))

    return types.uint64(array, types.intp), generate


def _high_product(typing_context, a, b):
    """The upper 64 bits of the 128-bit product of two uint64."""

    def generate(context, builder, signature, arguments):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


def _leading_zeros(typing_context, value):
    """How many of the upper bits of a uint64 are zero; 64 for zero."""

    def generate(context, builder, signature, arguments):
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


def _trailing_zeros(typing_context, value):
    """How many of the lower bits of a uint64 are zero; 64 for zero."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


load_u8: Any = intrinsic(_load_u8)
high_product: Any = intrinsic(_high_product)
leading_zeros: Any = intrinsic(_leading_zeros)
trailing_zeros: Any = intrinsic(_trailing_zeros)


@inlined
def rotate_right(value, bits):
    return (value >> np.uint64(bits)) | (value << np.uint64(64 - bits))


@inlined
def mix_pair(u, v, multiplier):
    a = (u ^ v) * multiplier
    a ^= a >> np.uint64(47)
    b = (v ^ a) * multiplier
    b ^= b >> np.uint64(47)
    return b * multiplier


@inlined
def hash_8_to_16(first, last, length):
    """Fingerprint64 of 8 to 16 bytes, given their first and last eight as uint64."""
    multiplier = K2 + np.uint64(2) * np.uint64(length)
    a = first + K2
    c = rotate_right(last, 37) * multiplier + a
    d = (rotate_right(a, 25) + last) * multiplier
    return mix_pair(c, d, multiplier)


@compiled
def _hash_0_to_7(s, n):
    if n == 0:
        return K2
    length = np.uint64(n)
    if n < 4:
        y = np.uint64(s[0]) + (np.uint64(s[n >> 1]) << np.uint64(8))
        z = length + (np.uint64(s[n - 1]) << np.uint64(2))
        mixed = y * K2 ^ z * K0
        return (mixed ^ (mixed >> np.uint64(47))) * K2
    first = load_u64(s, 0) & np.uint64(0xFFFFFFFF)
    last = load_u64(s, n - 4) & np.uint64(0xFFFFFFFF)
    return mix_pair(length + (first << np.uint64(3)), last, K2 + np.uint64(2) * length)


@compiled
def _hash_17_to_32(s, n):
    multiplier = K2 + np.uint64(2) * np.uint64(n)
    a = load_u64(s, 0) * K1
    b = load_u64(s, 8)
    c = load_u64(s, n - 8) * multiplier
    d = load_u64(s, n - 16) * K2
    u = rotate_right(a + b, 43) + rotate_right(c, 30) + d
    return mix_pair(u, a + rotate_right(b + K2, 18) + c, multiplier)


@compiled
def _hash_33_to_64(s, n):
    multiplier = K2 + np.uint64(2) * np.uint64(n)
    a = load_u64(s, 0) * K2
    b = load_u64(s, 8)
    c = load_u64(s, n - 8) * multiplier
    d = load_u64(s, n - 16) * K2
    y = rotate_right(a + b, 43) + rotate_right(c, 30) + d
    z = mix_pair(y, a + rotate_right(b + K2, 18) + c, multiplier)
    e = load_u64(s, 16) * multiplier
    f = load_u64(s, 24)
    g = (y + load_u64(s, n - 32)) * multiplier
    h = (z + load_u64(s, n - 24)) * multiplier
    u = rotate_right(e + f, 43) + rotate_right(g, 30) + h
    return mix_pair(u, e + rotate_right(f + a, 18) + g, multiplier)


@compiled
def _mix_32_bytes(s, at, a, b):
    w, x, y, z = load_u64(s, at), load_u64(s, at + 8), load_u64(s, at + 16), load_u64(s, at + 24)
    a += w
    b = rotate_right(b + a + z, 21)
    c = a
    a += x + y
    b += rotate_right(a, 44)
    return a + z, b + c


@compiled
def _hash_over_64(s, n):
    x = np.uint64(81)
    y = x * K1 + np.uint64(113)
    z = y * K2 + np.uint64(113)
    z = (z ^ (z >> np.uint64(47))) * K2
    v0 = v1 = w0 = w1 = np.uint64(0)
    x = x * K2 + load_u64(s, 0)
    at = 0
    end = (n - 1) // 64 * 64
    while at != end:
        x = rotate_right(x + y + v0 + load_u64(s, at + 8), 37) * K1
        y = rotate_right(y + v1 + load_u64(s, at + 48), 42) * K1
        x ^= w1
        y += v0 + load_u64(s, at + 40)
        z = rotate_right(z + w0, 33) * K1
        v0, v1 = _mix_32_bytes(s, at, v1 * K1, x + w0)
        w0, w1 = _mix_32_bytes(s, at + 32, z + w1, y + load_u64(s, at + 16))
        z, x = x, z
        at += 64
    # The last 64 bytes, which overlap what was read if the length is not a multiple of 64.
    at = n - 64
    nine = np.uint64(9)
    multiplier = K1 + ((z & np.uint64(0xFF)) << np.uint64(1))
    w0 += np.uint64((n - 1) & 63)
    v0 += w0
    w0 += v0
    x = rotate_right(x + y + v0 + load_u64(s, at + 8), 37) * multiplier
    y = rotate_right(y + v1 + load_u64(s, at + 48), 42) * multiplier
    x ^= w1 * nine
    y += v0 * nine + load_u64(s, at + 40)
    z = rotate_right(z + w0, 33) * multiplier
    v0, v1 = _mix_32_bytes(s, at, v1 * multiplier, x + w0)
    w0, w1 = _mix_32_bytes(s, at + 32, z + w1, y + load_u64(s, at + 16))
    z, x = x, z
    first = mix_pair(v0, w0, multiplier) + (y ^ (y >> np.uint64(47))) * K0 + z
    return mix_pair(first, mix_pair(v1, w1, multiplier) + x, multiplier)


@compiled
def fingerprint64(s, n):
    """Fingerprint64 of the first `n` bytes of the uint8 array `s`, which must extend 8 bytes beyond them.

    FarmHash (Geoff Pike, Google, 2014), the `farmhashna::Hash64` function that its authors promise never to change.
    """
    if n < 8:
        return _hash_0_to_7(s, n)
    if n <= 16:
        return hash_8_to_16(load_u64(s, 0), load_u64(s, n - 8), n)
    if n <= 32:
        return _hash_17_to_32(s, n)
    if n <= 64:
        return _hash_33_to_64(s, n)
    return _hash_over_64(s, n)
