"""Rows of a table whose steps without gradient are made up for later: the history of steps, and the compiled replay.

A row that no batch looks up has gradient zero, so what a NAdamW step does to it follows from three numbers of that
step alone, the decay d, the factor f and the addend e of `nadamw`:

    m ← β1·m;  v ← β2·v;  θ ← θ·d − f·β1·m / (√v + e);  average ← average + w·(θ − average), where there is one

`replay` makes the same operations in the same order in float32, so that θ, m, v and the average end up as if no step
had been left out, bit for bit. Once m has decayed so far that the subtraction cannot change θ any more, only the
products are left to make; `_settled` says when, and why. Letters: R rows, E embedding width.
"""

# ruff: noqa: PLR0917
# (compiled functions take their arrays and scalars one by one)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

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


class History:
    """What every step since the last whole replay did to a row without gradient; about 20 bytes a step."""

    def __init__(self) -> None:
        self.steps = 0
        self._numbers = np.empty((4, 1024), dtype=np.float32)
        self._blocks = np.empty((3, 1024 // BLOCK))

    def append(self, decay: np.float32, factor: np.float32, addend: np.float32) -> None:
        """One more step, with no average taken after it so far."""
        if self.steps == self._numbers.shape[1]:
            self._numbers = np.concatenate([self._numbers, np.empty_like(self._numbers)], axis=1)
            self._blocks = np.concatenate([self._blocks, np.empty_like(self._blocks)], axis=1)
        self._numbers[:, self.steps] = decay, factor, addend, np.nan
        block = self.steps // BLOCK
        if self.steps % BLOCK == 0:
            self._blocks[:, block] = 0.0, np.inf, 1.0
        largest, least, kept = self._blocks[:, block].tolist()
        # comparisons are False for NaN: a step that is not as steps should be makes its block one that is never skipped
        usual = 0.0 < decay <= 1.0 and 0.0 <= factor < np.inf and 0.0 <= addend < np.inf
        largest = max(largest, float(factor)) if usual else np.inf
        self._blocks[:, block] = largest, min(least, float(addend)), kept * float(decay) * ROUNDED_DOWN
        self.steps += 1

    def averaged(self, weight: np.float32) -> None:
        """The average was taken after the latest step, at this weight."""
        self._numbers[3, self.steps - 1] = weight

    def clear(self) -> None:
        """Forget all steps: every row has made them."""
        self.steps = 0

    @property
    def numbers(self) -> NDArray[np.float32]:
        """(4, `steps` and more): decay, factor, addend, and the average's weight, NaN where none was taken."""
        return self._numbers

    def bounds(self, beta2: float) -> NDArray[np.float64]:
        """(2, blocks, 4): of each block of steps, and of all steps from it on, what `_settled` needs.

        The largest factor (infinite where a step is not as steps should be), the least addend, and what θ and v keep
        of their size at least.
        """
        largest, least, kept = self._blocks[:, : -(-self.steps // BLOCK)][:, ::-1]
        blocks = np.arange(1, len(kept) + 1)
        keep_v = np.power(beta2 * ROUNDED_DOWN, np.stack([np.full(len(kept), BLOCK), blocks * BLOCK]))
        alone = np.stack([largest, least, kept, keep_v[0]])
        onward = np.stack(
            [np.maximum.accumulate(largest), np.minimum.accumulate(least), np.multiply.accumulate(kept), keep_v[1]]
        )
        return np.ascontiguousarray(np.stack([alone, onward])[:, :, ::-1].transpose(0, 2, 1))


@intrinsic
def _fma(typingctx: Any, a: Any, b: Any, c: Any = None) -> Any:
    """a·b + c, rounded once, as the processor does it."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), build


@njit(nogil=True, cache=True, error_model="numpy")
def _lerp(average, theta, low, high, weight, fused):
    """`torch.lerp` of float32: rounded once at the end where torch's build is `fused`."""
    one = np.float32(1.0)
    if abs(weight) < np.float32(0.5):
        if fused:
            for i in range(low, high):
                average[i] = _fma(weight, theta[i] - average[i], average[i])
        else:
            for i in range(low, high):
                average[i] = average[i] + weight * (theta[i] - average[i])
    elif fused:
        for i in range(low, high):
            average[i] = _fma(weight - one, theta[i] - average[i], theta[i])
    else:
        for i in range(low, high):
            average[i] = theta[i] - (theta[i] - average[i]) * (one - weight)


@njit(nogil=True, cache=True, error_model="numpy")
def average_rows(rows, width, average, theta, weight, fused):
    """The average of these rows taken once, at `weight`; arrays are flat."""
    for row in rows:
        _lerp(average, theta, row * width, (row + 1) * width, weight, fused)


@njit(nogil=True, cache=True, error_model="numpy")
def _settled(theta, m, v, low, high, bounds, negligible):
    """Whether no step under `bounds` does more to these elements than multiply θ, m and v.

    Let the coming steps k = 1, 2, ... have f_k ≤ F, e_k ≥ e and 0 < d_k ≤ 1. Rounding is monotone and β1, β2 ≤ 1, so
    |m_k| ≤ |m| and |θ_k| ≤ |θ|. A product of normal numbers keeps at least 1 − 2⁻²⁴ of its exact value, so with
    `bounds`' share of θ and v kept, and as long as these are no denormals (v counts as 0 else),

        t = share·|θ| ≤ |θ_k|,   s = √(share·v) ≤ √v_k,   D = s + e.

    The computed update u of step k passes through four roundings of at most 1 ± 2⁻²⁴ each, and loses at most 2⁻¹⁵⁰
    where f·m̃, and again where the quotient, is denormal:

        |u| ≤ (F·|m| + 2⁻¹⁴⁹) / D · (1 + 2⁻²²+ ...) + 2⁻¹⁵⁰

    θ_k·d_k = a is kept by the subtraction a − u if |u| is less than half the distance to a's nearest neighbour, which
    for normal a is at least 2⁻²⁵·|a|. Hence an element is settled

    1. if (F·|m| + 2⁻¹⁴⁹)·(1 + 2⁻²⁰) < 2⁻²⁵·t·D and t > 2⁻¹⁰⁰: SLACK pays for the roundings and for the last 2⁻¹⁵⁰;
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
    for i in range(low, high):
        size = abs(np.float64(theta[i])) * keep_theta
        second = np.float64(v[i]) * keep_v
        below = np.sqrt(second if second > SAFELY_NORMAL else 0.0 * second) + least
        first = abs(np.float64(m[i]))
        small = ((first * largest + SMALLEST) * SLACK < negligible * size * below) & (size > FAR_FROM_ZERO)
        none = (first == 0.0) & (below > 0.0)
        signed = (np.copysign(1.0, np.float64(theta[i])) > 0.0) | (size > FAR_FROM_ZERO)
        lost = (first * largest < SMALLEST / 4.0) & (below > 0.0) & signed
        unsettled += not (small | none | lost)
    return unsettled == 0


@njit(nogil=True, cache=True, error_model="numpy")
def _whole_steps(theta, m, v, average, low, high, numbers, start, stop, beta1, beta2, averaged, fused):
    """Steps `start` to `stop` as the dense kernel makes them with a gradient of +0."""
    zero = np.float32(0.0)
    for k in range(start, stop):
        decay, factor, addend, weight = numbers[0, k], numbers[1, k], numbers[2, k], numbers[3, k]
        for i in range(low, high):
            first = beta1 * m[i] + zero
            second = beta2 * v[i] + zero
            m[i] = first
            v[i] = second
            theta[i] = theta[i] * decay - factor * (beta1 * first + zero) / (np.sqrt(second) + addend)
        if averaged and weight == weight:  # noqa: PLR0124 (it is no NaN)
            _lerp(average, theta, low, high, weight, fused)


@njit(nogil=True, cache=True, error_model="numpy")
def _decay(theta, average, low, high, numbers, start, stop, averaged, fused):
    """θ of settled elements: one product a step; none where the decay is 1."""
    k = start
    while not averaged and k + 8 <= stop:
        d0, d1, d2, d3 = numbers[0, k], numbers[0, k + 1], numbers[0, k + 2], numbers[0, k + 3]
        d4, d5, d6, d7 = numbers[0, k + 4], numbers[0, k + 5], numbers[0, k + 6], numbers[0, k + 7]
        if min(d0, d1, d2, d3, d4, d5, d6, d7) < 1.0:
            for i in range(low, high):
                theta[i] = theta[i] * d0 * d1 * d2 * d3 * d4 * d5 * d6 * d7
        k += 8
    while k < stop:
        decay, weight = numbers[0, k], numbers[3, k]
        for i in range(low, high):
            theta[i] = theta[i] * decay
        if averaged and weight == weight:  # noqa: PLR0124
            _lerp(average, theta, low, high, weight, fused)
        k += 1


@njit(nogil=True, cache=True, error_model="numpy")
def _shrink(x, low, high, beta, steps):
    """x ← β·x, `steps` times, of a settled element's m or v, whose signed zeros become +0."""
    zero = np.float32(0.0)
    while steps > 0:
        count = min(steps, BLOCK)
        denormal = SAFELY_NORMAL / (np.float64(beta) * ROUNDED_DOWN) ** count
        nonzero = 0
        small = 0
        for i in range(low, high):
            size = abs(np.float64(x[i]))
            nonzero += size != 0.0
            small += (size != 0.0) & (size < denormal)
        if nonzero == 0:
            break
        if small == 0:
            for _ in range(count // 8):
                for i in range(low, high):
                    x[i] = x[i] * beta * beta * beta * beta * beta * beta * beta * beta
            for _ in range(count % 8):
                for i in range(low, high):
                    x[i] = x[i] * beta
        elif _shrink_denormal(x, low, high, np.float64(beta), count) == 0:
            break
        steps -= count
    for i in range(low, high):
        x[i] = x[i] + zero


@njit(nogil=True, cache=True, error_model="numpy")
def _shrink_denormal(x, low, high, beta, steps):
    """The same where denormals are near, on which processors are slow; returns how many elements the last step changed.

    In float64, x in units of the smallest float32 is a whole number with 24 significant bits, and its product with β
    is exact. float32 rounds it to 24 bits, or to a whole number where it is smaller than 2²³, ties to even in both.
    Denormals are not rounded to zero on their way down: 0.93 times 7 of the units is 7 again.
    """
    magic = 6755399441055744.0  # 1.5·2⁵²: added and subtracted, it rounds to a whole number
    changed = 0
    for i in range(low, high):
        units = np.float64(x[i]) / SMALLEST
        before = units
        for _ in range(steps):
            before = units
            product = beta * units
            if abs(product) < 8388608.0:
                units = (product + magic) - magic
            else:
                units = np.float64(np.float32(product * SMALLEST)) / SMALLEST
            if units == before:
                break
        changed += units != before
        x[i] = np.float32(units * SMALLEST)
    return changed


@njit(nogil=True, cache=True, error_model="numpy")
def replay(rows, since, end, width, theta, m, v, average, numbers, bounds, beta1, beta2, averaged, fused, negligible):
    """Every row makes its steps of `numbers` from `since`, its own, to before `end`; arrays of the table are flat.

    Whether an average moves with it is `averaged`; without one, `average` may be any such array.
    """
    for r in range(rows.size):
        low = rows[r] * width
        high = low + width
        k = since[r]
        while k < end:
            block = k // BLOCK
            stop = min((block + 1) * BLOCK, end)
            if end - k <= SHORT:
                stop = end
                settled = False
            else:
                settled = _settled(theta, m, v, low, high, bounds[1, block], negligible)
                if settled:
                    stop = end
                elif stop < end:
                    settled = _settled(theta, m, v, low, high, bounds[0, block], negligible)
            if settled:
                _decay(theta, average, low, high, numbers, k, stop, averaged, fused)
                _shrink(m, low, high, beta1, stop - k)
                _shrink(v, low, high, beta2, stop - k)
            else:
                _whole_steps(theta, m, v, average, low, high, numbers, k, stop, beta1, beta2, averaged, fused)
            k = stop


@njit(nogil=True, cache=True, error_model="numpy")
def move_rows(rows, width, theta, gradients, m, v, decay, beta1, rest1, beta2, rest2, addend, factor):
    """One step of these rows with their gradients (U, E), as the dense kernel makes it; other arrays are flat."""
    for k in range(rows.size):
        low = rows[k] * width
        for j in range(width):
            i, g = low + j, gradients[k, j]
            first = beta1 * m[i] + rest1 * g
            second = beta2 * v[i] + rest2 * g * g
            m[i] = first
            v[i] = second
            theta[i] = theta[i] * decay - factor * (beta1 * first + rest1 * g) / (np.sqrt(second) + addend)


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
def distinct(ids, padding, place, rows):
    """Every id but `padding` once into `rows`; returns their number. `place` (R,) may hold anything before."""
    count = 0
    for row in ids:
        if row != padding and not (place[row] < count and rows[place[row]] == row):
            rows[count] = row
            place[row] = count
            count += 1
    return count


@njit(nogil=True, cache=True)
def sum_rows(ids, padding, place, values, sums, low, high):
    """Adds columns `low` to `high` of `values` (N, E) to `sums` (U, E) at `place[id]`, in the order of the ids.

    With `sums` zero before, it is what torch's dense backward of an embedding adds up, in its order.
    """
    for n in range(ids.size):
        row = ids[n]
        if row != padding:
            k = place[row]
            for i in range(low, high):
                sums[k, i] += values[n, i]
