"""Rows of a table with steps to make, the steps made one by one in numpy, and rows, steps and values to try.

Float32 operation by operation: what every kernel that makes steps later is held against.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from trainer.learner.tables.replay import HALF_ULP, replay
from trainer.learner.tables.table import History

F = np.float32
BETA1, BETA2 = 0.93266073836, 0.9955159689799007
NAN = float("nan")
KERNELS_DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
"""Where tests run Triton's kernels: compiled on a device, or in its interpreter, which computes on the CPU."""


def on_kernels_device(array: Any) -> Tensor:
    """A copy of the array where the kernels are run."""
    return torch.from_numpy(np.array(array, order="C")).to(KERNELS_DEVICE)


@dataclass
class Rows:
    """θ, m, v and the average of some rows (R, E), and the steps to make: decay, factor, addend, weight (steps, 4)."""

    theta: np.ndarray
    m: np.ndarray
    v: np.ndarray
    steps: np.ndarray
    average: np.ndarray | None = None
    since: np.ndarray | None = None
    betas: tuple[float, float] = (BETA1, BETA2)
    fused: bool = True

    def __post_init__(self) -> None:
        self.theta, self.m, self.v = (np.asarray(array, dtype=F) for array in (self.theta, self.m, self.v))
        self.steps = np.asarray(self.steps, dtype=F)
        self.since = np.zeros(len(self.theta), dtype=np.int64) if self.since is None else self.since

    def one_by_one(self) -> list[np.ndarray]:
        """The formula of ALGOPERF.md with gradient 0, then the average; every operation rounded to float32."""
        theta, m, v = self.theta.copy(), self.m.copy(), self.v.copy()
        average = None if self.average is None else self.average.copy()
        beta1, beta2, zero = F(self.betas[0]), F(self.betas[1]), F(0)
        assert self.since is not None
        with np.errstate(all="ignore"):
            for k, (decay, factor, addend, weight) in enumerate(self.steps):
                on = self.since <= k
                m[on] = beta1 * m[on] + zero
                v[on] = beta2 * v[on] + zero
                update = factor * (beta1 * m[on] + zero) / (np.sqrt(v[on]) + addend)
                theta[on] = theta[on] * decay - update
                if average is not None and not np.isnan(weight):
                    average[on] = lerp(average[on], theta[on], weight, fused=self.fused)
        return [theta, m, v] if average is None else [theta, m, v, average]

    def history(self) -> History:
        history = History()
        for decay, factor, addend, weight in self.steps:
            history.append(decay, factor, addend)
            if not np.isnan(weight):
                history.averaged(weight)
        return history

    def replayed(self, negligible: float = HALF_ULP) -> list[np.ndarray]:
        history = self.history()
        arrays = [self.theta.copy(), self.m.copy(), self.v.copy()]
        if self.average is not None:
            arrays.append(self.average.copy())
        theta, m, v, *_ = flat = [array.reshape(-1) for array in arrays]
        replay(
            np.arange(len(self.theta)),
            self.since,
            history.steps,
            self.theta.shape[1],
            theta,
            m,
            v,
            flat[-1],
            history.numbers,
            history.bounds(float(F(self.betas[1]))),
            F(self.betas[0]),
            F(self.betas[1]),
            self.average is not None,
            self.fused,
            negligible,
        )
        return arrays


def lerp(start: np.ndarray, end: np.ndarray, weight: np.float32, *, fused: bool) -> np.ndarray:
    """a + w·(b − a), from the nearer end; after the difference rounded once, if `fused` (float64 holds the product)."""
    difference, exact = end - start, np.float64 if fused else F
    if abs(weight) < 0.5:
        return (exact(weight) * difference.astype(exact) + start).astype(F)
    return (exact(weight - F(1)) * difference.astype(exact) + end).astype(F)


def equal(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    """Bit for bit, but for which of its many patterns a NaN has."""
    return all(
        np.array_equal(np.isnan(a), np.isnan(b))
        and np.array_equal(a.view(np.int32)[~np.isnan(a)], b.view(np.int32)[~np.isnan(b)])
        for a, b in zip(found, expected, strict=True)
    )


def nadamw_steps(
    count: int, *, lr: float = 1.7e-3, decay: float = 0.08, eps: float = 1e-8, first: int = 1
) -> np.ndarray:
    """Decay, factor, addend and weight (NaN) of `count` steps from `first` on, at a rate that swings by a tenth."""
    t = np.arange(first, first + count, dtype=np.float64)
    rate = lr * (1 + 0.1 * np.sin(t / 7))
    correction = np.sqrt(1 - BETA2**t)
    factor = rate * correction / (1 - BETA1**t)
    return np.stack([1 - rate * decay, factor, eps * correction, np.full(count, NAN)], axis=1).astype(F)


def looked_up(rows: int, width: int, seed: int = 0) -> dict[str, Any]:
    """Rows as they are after a few look-ups: θ of an initialized table, m and v of gradients of many sizes."""
    generator = np.random.default_rng(seed)
    theta = (generator.random((rows, width)) - 0.3) * 1e-3
    g = generator.standard_normal((rows, width)) * 10.0 ** generator.uniform(-9, -3, (rows, 1))
    return {"theta": theta, "m": (1 - BETA1) * g, "v": (1 - BETA2) * g**2}


SPECIAL = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1e-42,
    -1e-40,
    1.2e-38,
    1e-30,
    -1e-20,
    1e-8,
    -3e-4,
    1.0,
    3e38,
    np.inf,
    -np.inf,
    NAN,
]


sizes = st.sampled_from([0.0, 1e-45, 1e-40, 1e-38, 1e-30, 1e-20, 1e-12, 1e-8, 1e-5, 1e-3, 1.0, 1e10])


@st.composite
def histories(draw: st.DrawFn) -> Rows:
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 12)), draw(st.sampled_from([1, 3, 8, 17]))

    def values() -> np.ndarray:
        return generator.standard_normal(shape) * draw(sizes) * 2.0 ** generator.uniform(-8, 8, shape)

    count = draw(st.integers(0, 300))
    betas = draw(st.sampled_from([(BETA1, BETA2), (0.9, 0.999), (0.99, 0.9), (0.0, 0.5), (0.5, 0.0)]))
    rate = 10.0 ** draw(st.integers(-6, 0)) * 2.0 ** generator.uniform(-1, 1, count)
    steps = np.stack([1 - rate * draw(st.sampled_from([0.0, 1e-3, 0.08])), rate, rate * draw(sizes), rate], axis=1)
    steps[:, 3] = np.where(generator.random(count) < draw(st.sampled_from([0.0, 0.2, 1.0])), steps[:, 3], NAN)
    return Rows(
        values(),
        values(),
        np.abs(values()) ** draw(st.sampled_from([1, 2])),
        steps,
        average=values().astype(F) if draw(st.booleans()) else None,
        since=generator.integers(0, count + 1, shape[0]),
        betas=betas,
    )
