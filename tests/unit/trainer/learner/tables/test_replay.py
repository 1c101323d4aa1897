"""The replay of rows against the same steps made one by one in numpy, float32 operation by operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from tests.table_rows import BETA1, BETA2, NAN, SPECIAL, F, Rows, equal, histories, looked_up, nadamw_steps
from trainer.learner.tables.replay import HALF_ULP, settled
from trainer.learner.tables.table import History


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


def test_every_mix_of_special_values() -> None:
    theta, m, v = (grid.reshape(-1, 1) for grid in np.meshgrid(SPECIAL, SPECIAL, np.abs(SPECIAL)))
    for count in (3, 40, 2000):
        rows = Rows(theta, m, v, nadamw_steps(count), average=theta.astype(F)[::-1].copy())
        assert equal(rows.replayed(), rows.one_by_one()), count


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
