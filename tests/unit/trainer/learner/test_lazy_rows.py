"""The replay of rows against the same steps made one by one in numpy, float32 operation by operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.learner.lazy_rows import HALF_ULP, replay, settled
from trainer.learner.lazy_table import History

F = np.float32
BETA1, BETA2 = 0.93266073836, 0.9955159689799007
NAN = float("nan")


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

    def replayed(self, negligible: float = HALF_ULP) -> list[np.ndarray]:
        history = History()
        for decay, factor, addend, weight in self.steps:
            history.append(decay, factor, addend)
            if not np.isnan(weight):
                history.averaged(weight)
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


@pytest.mark.parametrize("count", [1, 4, 5, 31, 32, 33, 64, 100, 500, 1300, 5000])
def test_a_gap_of_any_length_ends_where_every_step_alone_does(count: int) -> None:
    rows = Rows(**looked_up(40, 24), steps=nadamw_steps(count, first=50))
    assert equal(rows.replayed(), rows.one_by_one())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["ema", "polyak", "now and then"])
def test_the_average_moves_along(kind: str, fused: bool) -> None:
    steps = nadamw_steps(700)
    k = np.arange(1, 701)
    steps[:, 3] = {"ema": np.maximum(0.01, 1 / k), "polyak": 1 / k, "now and then": np.where(k % 3, NAN, 0.7)}[kind]
    rows = Rows(
        **looked_up(30, 16), steps=steps, average=np.random.default_rng(1).random((30, 16)).astype(F), fused=fused
    )
    assert equal(rows.replayed(), rows.one_by_one())


def test_rows_that_are_behind_by_different_steps_end_together() -> None:
    since = np.random.default_rng(2).integers(0, 900, 50)
    rows = Rows(**looked_up(50, 8), steps=nadamw_steps(900), since=since)
    assert equal(rows.replayed(), rows.one_by_one())


def test_moments_come_to_rest_among_the_denormals_as_rounding_has_it() -> None:
    generator = np.random.default_rng(3)
    size = 10.0 ** generator.uniform(-45, -30, (200, 8))
    m = size * np.sign(generator.standard_normal((200, 8)))
    rows = Rows(np.full((200, 8), 0.3), m, size, nadamw_steps(700, first=9000))
    found = rows.replayed()
    assert equal(found, rows.one_by_one())
    assert np.abs(found[1][found[1] != 0]).min() == F(1e-45), "no denormal is rounded to zero by 0.93"
    assert (np.abs(found[1]) == 7 * 2.0**-149).any(), "rint(0.9327·7) = 7"


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.75, 0.9, 0.999, 1 - 1e-9])
def test_any_decay_of_the_moments(beta: float) -> None:
    values = looked_up(40, 8)
    values["m"][::2] *= 1e-33
    values["v"][::3] *= 1e-28
    for betas in ((beta, BETA2), (BETA1, beta)):
        rows = Rows(**values, steps=nadamw_steps(400), betas=betas)
        assert equal(rows.replayed(), rows.one_by_one()), betas


@pytest.mark.parametrize(
    "changes",
    [
        {"decay": 0.0},
        {"lr": 0.0},
        {"eps": 0.0},
        {"eps": 1.0},
        {"lr": 20.0},
        {"lr": 100.0},
        {"lr": float("inf")},
    ],
    ids=str,
)
def test_steps_of_any_kind(changes: dict[str, Any]) -> None:
    values = looked_up(60, 8)
    values["m"][:20] = 0.0
    values["v"][:10] = 0.0
    rows = Rows(**values, steps=nadamw_steps(200, **changes))
    assert equal(rows.replayed(), rows.one_by_one())


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


def test_every_mix_of_special_values() -> None:
    theta, m, v = (grid.reshape(-1, 1) for grid in np.meshgrid(SPECIAL, SPECIAL, np.abs(SPECIAL)))
    for count in (3, 40, 2000):
        rows = Rows(theta, m, v, nadamw_steps(count), average=theta.astype(F)[::-1].copy())
        assert equal(rows.replayed(), rows.one_by_one()), count


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


@settings(deadline=None, max_examples=200)
@given(histories())
def test_any_history_of_any_rows(rows: Rows) -> None:
    assert equal(rows.replayed(), rows.one_by_one())


@pytest.mark.parametrize("factor", [2.0, 16.0, 2.0**10])
def test_a_larger_bound_is_wrong(factor: float) -> None:
    rows = Rows(**looked_up(4000, 1), steps=nadamw_steps(700, first=50))
    expected = rows.one_by_one()
    assert equal(rows.replayed(), expected)
    assert not equal(rows.replayed(HALF_ULP * factor), expected)


def test_a_row_is_settled_some_hundred_steps_after_its_last_look_up() -> None:
    values = looked_up(1, 128, seed=4)
    history = History()
    for decay, factor, addend, _ in nadamw_steps(1000, first=1000):
        history.append(decay, factor, addend)
    onward = history.bounds(BETA2)[1]

    def is_settled(after: int) -> bool:
        theta, m, v = Rows(**values, steps=nadamw_steps(after, first=1000)).one_by_one()
        return settled(theta[0], m[0], v[0], onward[after // 32], HALF_ULP)

    assert not is_settled(96)
    assert is_settled(512)


def test_a_row_that_was_never_looked_up_is_settled_from_the_start() -> None:
    history = History()
    for decay, factor, addend, _ in nadamw_steps(3000):
        history.append(decay, factor, addend)
    theta, zero = np.linspace(-1, 1, 9, dtype=F), np.zeros(9, dtype=F)
    assert settled(theta, zero, zero, history.bounds(BETA2)[1, 0], HALF_ULP)
