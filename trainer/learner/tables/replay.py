"""Rows of a table whose steps without gradient are made up for later: the compiled replay.

A row that no batch looks up has gradient zero, so what a NAdamW step does to it follows from three numbers of that
step alone, the decay d, the factor f and the addend e of `nadamw`:

    m ← β1·m;  v ← β2·v;  θ ← θ·d − f·β1·m / (√v + e);  average ← average + w·(θ − average), where there is one

`replay` makes the same operations in the same order in float32, so that θ, m, v and the average end up as if no step
had been left out, bit for bit. Once m has decayed so far that the subtraction cannot change θ any more, only the
products are left to make; `settled` says when, and why. Letters: R rows, E embedding width.
"""

# ruff: noqa: PLR0917
# (compiled functions take their arrays and scalars one by one)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipeline.compiled import compiled

BLOCK = 32
"""Steps between two looks at whether a row is settled."""
SHORT = 4
"""So few steps are made without looking."""
HALF_ULP = 2.0**-25
"""A float32 θ that is no denormal keeps its value when less than |θ| times this is subtracted from it."""
SMALLEST = 2.0**-149
"""The smallest positive float32, a denormal; half of it or less is rounded to zero."""
SAFELY_NORMAL = 2.0**-125
"""Twice the smallest float32 that is no denormal."""
FAR_FROM_ZERO = 2.0**-100
"""Beside a θ of this size, errors of the size of denormals do not count."""
SLACK = 1.0 + 2.0**-20
"""More than the roundings of one update together, each of them 2⁻²⁴."""
ROUNDED_DOWN = 1.0 - 2.0**-23
"""Less than what a product keeps of its exact value after its rounding."""


@intrinsic
def _fma(typingctx: Any, a: Any, b: Any, c: Any = None) -> Any:
    """a·b + c, rounded once, as the processor does it."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), build


@compiled(error_model="numpy")
def _lerp(average, theta, weight, fused):
    """`torch.lerp` of float32: rounded once at the end where torch's build is `fused`."""
    one = np.float32(1.0)
    if abs(weight) < np.float32(0.5):
        if fused:
            for i in range(theta.size):
                average[i] = _fma(weight, theta[i] - average[i], average[i])
        else:
            for i in range(theta.size):
                average[i] = average[i] + weight * (theta[i] - average[i])
    elif fused:
        for i in range(theta.size):
            average[i] = _fma(weight - one, theta[i] - average[i], theta[i])
    else:
        for i in range(theta.size):
            average[i] = theta[i] - (theta[i] - average[i]) * (one - weight)


@compiled(error_model="numpy")
def average_rows(rows, width, average, theta, weight, fused):
    """The average of these rows taken once, at `weight`; arrays are flat."""
    for row in rows:
        part = slice(row * width, (row + 1) * width)
        _lerp(average[part], theta[part], weight, fused)


@compiled(error_model="numpy")
def settled(theta, m, v, bounds, negligible):
    """Whether no step under `bounds` does more to these elements than multiply θ, m and v.

    Let the coming steps k = 1, 2, ... have f_k ≤ F, e_k ≥ e and 0 < d_k ≤ 1. Rounding is monotone and β1, β2 ≤ 1, so
    |m_k| ≤ |m| and |θ_k| ≤ |θ|. A product of normal numbers keeps at least 1 − 2⁻²⁴ of its exact value, so with
    `bounds`' share of θ and v kept, and as long as these are no denormals (v counts as 0 else),

        t = share·|θ| ≤ |θ_k|,   s = √(share·v) ≤ √v_k,   D = s + e.

    The computed update u of step k passes through four roundings of at most 1 ± 2⁻²⁴ each, and loses at most 2⁻¹⁵⁰
    where f·m̃ is denormal, and again where the quotient is:

        |u| ≤ (F·|m| + 2⁻¹⁴⁹) / D · (1 + 2⁻²¹) + 2⁻¹⁵⁰

    θ_k·d_k = a is kept by the subtraction a − u if |u| is less than half the distance to a's nearest neighbour, which
    for normal a is at least 2⁻²⁵·|a|. Hence an element is settled

    1. if (F·|m| + 2⁻¹⁴⁹)·(1 + 2⁻²⁰) < 2⁻²⁵·t·D and 2⁻¹⁰⁰ < t < ∞: half of SLACK pays for the roundings, half
       for the last 2⁻¹⁵⁰, which is less than 2⁻²¹·2⁻²⁵·t;
    2. if m = 0 and D > 0: u is +0, and a − 0 is a for every a;
    3. if F·|m| < 2⁻¹⁵¹ and D > 0: the product is rounded to zero, u is ±0, and a − u is a unless a is −0, which
       it cannot be if θ has the sign + or t > 2⁻¹⁰⁰.

    The comparisons are made in float64, with none of them true for NaN; steps of another kind have F = ∞, which fails
    all three. `negligible` is HALF_ULP; tests show that a larger one is wrong.
    """
    largest, least, keep_theta, keep_v = bounds[0], bounds[1], bounds[2], bounds[3]
    if not largest < np.inf:
        return False
    unsettled = 0
    for i in range(theta.size):
        size = abs(np.float64(theta[i])) * keep_theta
        second = np.float64(v[i]) * keep_v
        below = np.sqrt(second if second > SAFELY_NORMAL else 0.0 * second) + least
        first = abs(np.float64(m[i]))
        usual = (size > FAR_FROM_ZERO) & (size < np.inf)
        small = ((first * largest + SMALLEST) * SLACK < negligible * size * below) & usual
        none = (first == 0.0) & (below > 0.0)
        signed = (np.copysign(1.0, np.float64(theta[i])) > 0.0) | (size > FAR_FROM_ZERO)
        lost = (first * largest < SMALLEST / 4.0) & (below > 0.0) & signed
        unsettled += not (small | none | lost)
    return unsettled == 0


@compiled(error_model="numpy")
def _whole_steps(theta, m, v, average, numbers, start, stop, beta1, beta2, averaged, fused):
    """Steps `start` to `stop` as the dense kernel makes them with a gradient of +0."""
    zero = np.float32(0.0)
    for k in range(start, stop):
        decay, factor, addend, weight = numbers[0, k], numbers[1, k], numbers[2, k], numbers[3, k]
        for i in range(theta.size):
            first = beta1 * m[i] + zero
            second = beta2 * v[i] + zero
            m[i] = first
            v[i] = second
            theta[i] = theta[i] * decay - factor * (beta1 * first + zero) / (np.sqrt(second) + addend)
        if averaged and weight == weight:  # noqa: PLR0124 (it is no NaN)
            _lerp(average, theta, weight, fused)


@compiled(error_model="numpy")
def _decay(theta, average, numbers, start, stop, averaged, fused):
    """θ of settled elements: one product a step; none where the decay is 1."""
    k = start
    while not averaged and k + 8 <= stop:
        d0, d1, d2, d3 = numbers[0, k], numbers[0, k + 1], numbers[0, k + 2], numbers[0, k + 3]
        d4, d5, d6, d7 = numbers[0, k + 4], numbers[0, k + 5], numbers[0, k + 6], numbers[0, k + 7]
        if min(d0, d1, d2, d3, d4, d5, d6, d7) < 1.0:
            for i in range(theta.size):
                theta[i] = theta[i] * d0 * d1 * d2 * d3 * d4 * d5 * d6 * d7
        k += 8
    while k < stop:
        decay, weight = numbers[0, k], numbers[3, k]
        for i in range(theta.size):
            theta[i] = theta[i] * decay
        if averaged and weight == weight:  # noqa: PLR0124
            _lerp(average, theta, weight, fused)
        k += 1


@compiled(error_model="numpy")
def _shrink(x, beta, steps):
    """x ← β·x, `steps` times, of a settled row's m or v, whose signed zeros become +0."""
    zero = np.float32(0.0)
    wide = np.float64(beta)
    steps = _come_to_rest(x, wide, steps)
    while steps > 0:
        count = min(steps, BLOCK)
        denormal = SAFELY_NORMAL / (wide * ROUNDED_DOWN) ** count
        small = 0
        for i in range(x.size):
            size = abs(np.float64(x[i]))
            small += (size != 0.0) & (size < denormal)
        if small == 0 or wide < 0.3:
            for _ in range(count // 8):
                for i in range(x.size):
                    x[i] = x[i] * beta * beta * beta * beta * beta * beta * beta * beta
            for _ in range(count % 8):
                for i in range(x.size):
                    x[i] = x[i] * beta
        else:
            _shrink_denormals(x, wide, count, denormal)
        steps -= count
    for i in range(x.size):
        x[i] = x[i] + zero


@compiled(error_model="numpy")
def _come_to_rest(x, beta, steps):
    """Puts x where `steps` products take it, if all of it comes to rest on the way; returns the steps left to make.

    Denormals are not rounded to zero on their way down: in units of the smallest float32, 0.93 times 7 rounds to 7.
    Let K be the largest whole number that rounding takes back to itself, K = rint(β·K), so that k ≤ K stays. Since
    rounding is monotone, k > K never falls below K. And a product is at most b·k + ½ with b = β·(1 + 2⁻²⁴), the first
    error being that of normal numbers and the second that of denormals, so that n of them leave at most
    bⁿ·k + ½/(1 − b). Where that is below K + 1, k has come down to K.
    """
    raised = beta / ROUNDED_DOWN
    if not raised < 1.0:
        return steps
    at_most = 0.5 / (1.0 - raised)
    resting = np.floor(at_most)
    if not (resting < 2.0**22 and np.rint(beta * resting) == resting and np.rint(beta * (resting + 1.0)) <= resting):
        return steps
    far = (resting + 1.0 - at_most) / raised**steps * SMALLEST
    moving = 0
    for i in range(x.size):
        size = abs(np.float64(x[i]))
        moving += not ((size <= resting * SMALLEST) | (size < far / SLACK))
    if moving > 0:
        return steps
    for i in range(x.size):
        size = min(abs(np.float64(x[i])), resting * SMALLEST)
        x[i] = np.float32(np.copysign(size, np.float64(x[i])))
    return 0


@compiled(error_model="numpy")
def _shrink_denormals(x, beta, steps, denormal):
    """x ← β·x, at most BLOCK times, where elements below `denormal` would meet denormals, which processors are slow at.

    In float64 such an element in units of the smallest float32 is a whole number of 24 significant bits, and its
    product with β is exact. float32 rounds that to 24 bits, or to a whole number if it is smaller than 2²³; ties go to
    even in both. The other elements are multiplied as they are.
    """
    magic = 6755399441055744.0  # 1.5·2⁵²: added and subtracted, it rounds to a whole number
    units = np.empty(x.size)
    for i in range(x.size):
        small = abs(np.float64(x[i])) < denormal
        units[i] = np.float64(x[i]) / SMALLEST if small else 0.0
        x[i] = np.float32(0.0) if small else x[i]
    for _ in range(steps):
        for i in range(x.size):
            product = beta * units[i]
            whole = (product + magic) - magic
            rounded = np.float64(np.float32(product))
            units[i] = whole if abs(product) < 8388608.0 else rounded
            x[i] = x[i] * np.float32(beta)
    for i in range(x.size):
        x[i] = x[i] + np.float32(units[i] * SMALLEST)


@compiled(error_model="numpy")
def _catch_up(theta, m, v, average, numbers, bounds, start, end, beta1, beta2, averaged, fused, negligible):
    """One row's steps: whole ones while they must be, then products alone."""
    k = start
    while k < end:
        block = k // BLOCK
        stop = min((block + 1) * BLOCK, end)
        calm = False
        if end - k <= SHORT:
            stop = end
        elif settled(theta, m, v, bounds[1, block], negligible):
            calm, stop = True, end
        elif stop < end:
            calm = settled(theta, m, v, bounds[0, block], negligible)
        if calm:
            _decay(theta, average, numbers, k, stop, averaged, fused)
            _shrink(m, beta1, stop - k)
            _shrink(v, beta2, stop - k)
        else:
            _whole_steps(theta, m, v, average, numbers, k, stop, beta1, beta2, averaged, fused)
        k = stop


@compiled(error_model="numpy")
def replay(rows, since, end, width, theta, m, v, average, numbers, bounds, beta1, beta2, averaged, fused, negligible):
    """Every row makes its steps of `numbers` from `since`, its own, to before `end`; arrays of the table are flat.

    Whether an average moves with it is `averaged`; without one, `average` may be any such array.
    """
    for r in range(rows.size):
        part = slice(rows[r] * width, (rows[r] + 1) * width)
        _catch_up(
            theta[part],
            m[part],
            v[part],
            average[part],
            numbers,
            bounds,
            since[r],
            end,
            beta1,
            beta2,
            averaged,
            fused,
            negligible,
        )


@compiled(error_model="numpy")
def _move(theta, g, m, v, decay, beta1, rest1, beta2, rest2, addend, factor):
    for i in range(theta.size):
        first = beta1 * m[i] + rest1 * g[i]
        second = beta2 * v[i] + rest2 * g[i] * g[i]
        m[i] = first
        v[i] = second
        theta[i] = theta[i] * decay - factor * (beta1 * first + rest1 * g[i]) / (np.sqrt(second) + addend)


@compiled(error_model="numpy")
def move_rows(rows, width, theta, gradients, m, v, decay, beta1, rest1, beta2, rest2, addend, factor):
    """One step of these rows with their gradients (U, E), as the dense kernel makes it; other arrays are flat."""
    for k in range(rows.size):
        part = slice(rows[k] * width, (rows[k] + 1) * width)
        _move(theta[part], gradients[k], m[part], v[part], decay, beta1, rest1, beta2, rest2, addend, factor)


@compiled
def take_stale(ids, stamps, base, now, rows, since):
    """Of the rows `ids`, those that are behind: each once into `rows`, its step less `base` into `since`.

    They are stamped as current at `now`. Returns their number, or −1 for an id that is no row of the table.
    """
    for row in ids:
        if row < 0 or row >= stamps.size:
            return -1
    count = 0
    for row in ids:
        step = max(stamps[row], base)
        if step < now:
            rows[count], since[count] = row, step - base
            stamps[row] = now
            count += 1
    return count


@compiled
def distinct(ids, padding, place, rows):
    """Every id but `padding` once into `rows`; returns their number. `place` (R,) may hold anything before."""
    count = 0
    for row in ids:
        if row != padding and not (place[row] < count and rows[place[row]] == row):
            rows[count] = row
            place[row] = count
            count += 1
    return count


@compiled
def sum_rows(ids, padding, place, values, sums, low, high):
    """Adds columns `low` to `high` of `values` (N, E) to `sums` (U, E) at `place[id]`, in the order of the ids.

    With `sums` zero before, it is what torch's dense backward of an embedding adds up, in its order.
    """
    for n in range(ids.size):
        row = ids[n]
        if row != padding:
            one, total = values[n, low:high], sums[place[row], low:high]
            for i in range(total.size):
                total[i] += one[i]
