"""What one element of a parameter goes through, as Triton functions of the compiled kernels' operations in their order.

Nothing here may be contracted into a fused multiply-add that is not written as one, so every kernel is launched with
`enable_fp_fusion=False`; division and square root are the ones rounded to nearest. Constants are those of
`tables.replay`, where the bounds are proved.
"""

# ruff: noqa: PLR0917
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
# (kernels take pointers and scalars one by one; Triton is an extra)

from __future__ import annotations

import triton
import triton.language as tl

from trainer.learner.tables import replay

SMALLEST = tl.constexpr(replay.SMALLEST)
SAFELY_NORMAL = tl.constexpr(replay.SAFELY_NORMAL)
FAR_FROM_ZERO = tl.constexpr(replay.FAR_FROM_ZERO)
SLACK = tl.constexpr(replay.SLACK)
BLOCK = tl.constexpr(replay.BLOCK)
SHORT = tl.constexpr(replay.SHORT)


@triton.jit
def after_step(theta, g, m, v, decay, beta1, rest1, beta2, rest2, addend, factor):
    """θ, m and v after one step of NAdamW with gradient g."""
    first = beta1 * m + rest1 * g
    second = beta2 * v + rest2 * g * g
    update = tl.div_rn(factor * (beta1 * first + rest1 * g), tl.sqrt_rn(second) + addend)
    return theta * decay - update, first, second


@triton.jit
def lerp(average, theta, weight, FUSED: tl.constexpr):
    """`torch.lerp` of float32 from the average to θ: rounded once at the end if `FUSED`; the average if w is NaN."""
    difference = theta - average
    if FUSED:
        near = tl.fma(weight, difference, average)
        far = tl.fma(weight - 1.0, difference, theta)
    else:
        near = average + weight * difference
        far = theta - difference * (1.0 - weight)
    taken = tl.where(tl.abs(weight) < 0.5, near, far)
    return tl.where(weight == weight, taken, average)  # noqa: PLR0124


@triton.jit
def at_rest(theta, m, v, inside, bounds, negligible):
    """Whether no step under `bounds` does more to these elements than multiply: see `tables.replay.settled`."""
    largest = tl.load(bounds)
    least = tl.load(bounds + 1)
    keep_theta = tl.load(bounds + 2)
    keep_v = tl.load(bounds + 3)
    size = tl.abs(theta.to(tl.float64)) * keep_theta
    second = v.to(tl.float64) * keep_v
    below = tl.sqrt(tl.where(second > SAFELY_NORMAL, second, 0.0 * second)) + least
    first = tl.abs(m.to(tl.float64))
    usual = (size > FAR_FROM_ZERO) & (size < float("inf"))
    small = ((first * largest + SMALLEST) * SLACK < negligible * size * below) & usual
    none = (first == 0.0) & (below > 0.0)
    signed = (theta.to(tl.int32, bitcast=True) >= 0) | (size > FAR_FROM_ZERO)
    lost = (first * largest < SMALLEST / 4.0) & (below > 0.0) & signed
    unsettled = tl.sum((inside & ~(small | none | lost)).to(tl.int32), axis=0)
    return (unsettled == 0) & (largest < float("inf"))


@triton.jit
def quiet_step(theta, m, v, decay, factor, addend, beta1, beta2):
    """θ, m and v after one step with a gradient of +0."""
    m = beta1 * m + 0.0
    v = beta2 * v + 0.0
    theta = theta * decay - tl.div_rn(factor * (beta1 * m + 0.0), tl.sqrt_rn(v) + addend)
    return theta, m, v


@triton.jit
def whole_steps(
    theta, m, v, average, numbers, count, withheld, start, stop, beta1, beta2,
    MASKED: tl.constexpr, AVERAGED: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """Steps `start` to `stop` of the `count` in `numbers`, as `after_step` makes them with a gradient of +0.

    If `MASKED`, those for which `withheld` is not 0 move the average alone.
    """
    for k in range(start, stop):
        decay = tl.load(numbers + k)
        factor = tl.load(numbers + count + k)
        addend = tl.load(numbers + 2 * count + k)
        if MASKED:
            if tl.load(withheld + k) == 0.0:
                theta, m, v = quiet_step(theta, m, v, decay, factor, addend, beta1, beta2)  # pyright: ignore
        else:
            theta, m, v = quiet_step(theta, m, v, decay, factor, addend, beta1, beta2)  # pyright: ignore
        if AVERAGED:
            average = lerp(average, theta, tl.load(numbers + 3 * count + k), FUSED)
    return theta, m, v, average


@triton.jit
def decayed(
    theta, average, numbers, count, withheld, start, stop,
    MASKED: tl.constexpr, AVERAGED: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """θ of settled elements: one product a step, of those that were made."""
    for k in range(start, stop):
        decay = tl.load(numbers + k)
        if MASKED:
            decay = tl.where(tl.load(withheld + k) == 0.0, decay, 1.0)
        theta = theta * decay
        if AVERAGED:
            average = lerp(average, theta, tl.load(numbers + 3 * count + k), FUSED)
    return theta, average


@triton.jit
def steps_made(withheld, start, stop, MASKED: tl.constexpr):
    """How many of the steps `start` to `stop` moved anything."""
    made = stop - start
    if MASKED:
        for k in range(start, stop):
            made -= (tl.load(withheld + k) != 0.0).to(tl.int32)
    return made


@triton.jit
def shrunk(x, beta, steps):
    """x ← β·x, `steps` times, of settled elements' m or v, whose signed zeros become +0 if there are any steps.

    Products make no element larger, so where BLOCK of them change no bit, no further one does.
    """
    left = steps
    while left > 0:
        before = x
        for _ in range(tl.minimum(left, BLOCK)):
            x = x * beta
        moving = tl.sum((x.to(tl.int32, bitcast=True) != before.to(tl.int32, bitcast=True)).to(tl.int32), axis=0)
        left = tl.where(moving == 0, 0, left - BLOCK)
    if steps > 0:
        x = x + 0.0
    return x
