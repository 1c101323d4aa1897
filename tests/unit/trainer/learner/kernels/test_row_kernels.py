"""Rows brought up to date, moved and averaged by the Triton kernels as by the compiled ones, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from tests.table_rows import (
    BETA1,
    BETA2,
    KERNELS_DEVICE,
    NAN,
    SPECIAL,
    F,
    Rows,
    equal,
    histories,
    looked_up,
    nadamw_steps,
    on_kernels_device,
)
from trainer.learner.tables import replay
from trainer.learner.tables.replay import HALF_ULP

launches = pytest.importorskip("trainer.learner.kernels.launches", reason="Triton is not installed (make extras)")

HUGE = 2**30


def caught_up(
    rows: Rows, negligible: float = HALF_ULP, *, ids: Tensor | None = None, base: int = 0, whole: bool = False
) -> list[np.ndarray]:
    """What the kernel makes of `rows`: looked up in the order of `ids` (each once by default), or read as a whole."""
    assert rows.since is not None
    history, betas = rows.history(), (F(rows.betas[0]), F(rows.betas[1]))
    average = None if rows.average is None else on_kernels_device(rows.average)
    arrays = launches.RowArrays(
        on_kernels_device(rows.theta), on_kernels_device(rows.m), on_kernels_device(rows.v), average, rows.fused
    )
    numbers, bounds = (
        on_kernels_device(history.numbers[:, : history.steps]),
        on_kernels_device(history.bounds(float(betas[1]))),
    )
    missed = launches.MissedSteps(base, history.steps, numbers, bounds, betas)
    stamps = on_kernels_device(rows.since + base).int()
    every = np.arange(len(stamps))
    ids = on_kernels_device(every) if ids is None else ids
    launches.catch_up(None if whole else ids, stamps, arrays, missed, negligible)
    current = base + np.where(np.isin(every, ids.cpu()) & (not whole), history.steps, rows.since)
    assert np.array_equal(stamps.cpu().numpy(), current)
    return [array.cpu().numpy() for array in (arrays.theta, arrays.m, arrays.v, average) if array is not None]


def flattened(rows: dict[str, Any], count: int = 1) -> dict[str, Any]:
    """The same elements in `count` rows: a row costs the interpreter as much as an element."""
    return {name: array.reshape(count, -1) for name, array in rows.items()}


@pytest.mark.parametrize("count", [1, 4, 5, 31, 32, 33, 64, 100, 500, 2500])
def test_a_gap_of_any_length_ends_where_the_compiled_kernel_does(count: int) -> None:
    rows = Rows(**flattened(looked_up(40, 24), 2), steps=nadamw_steps(count, first=50))
    found = caught_up(rows)
    assert equal(found, rows.replayed())
    assert equal(found, rows.one_by_one())


@pytest.mark.parametrize("width", [1, 3, 17, 64, 100])
def test_any_width(width: int) -> None:
    rows = Rows(**looked_up(4, width), steps=nadamw_steps(80, first=50))
    assert equal(caught_up(rows), rows.replayed())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["ema", "polyak", "now and then"])
def test_the_average_moves_along(kind: str, fused: bool) -> None:
    steps = nadamw_steps(250)
    k = np.arange(1, 251)
    steps[:, 3] = {"ema": np.maximum(0.01, 1 / k), "polyak": 1 / k, "now and then": np.where(k % 3, NAN, 0.7)}[kind]
    average = np.random.default_rng(1).random((1, 400)).astype(F)
    rows = Rows(**flattened(looked_up(25, 16)), steps=steps, average=average, fused=fused)
    found = caught_up(rows)
    assert equal(found, rows.replayed())
    rows.fused = not fused
    assert not equal(found, rows.replayed())


def test_rows_that_are_behind_by_different_steps_end_together() -> None:
    since = np.array([0, 150, 149, 1, 75, 37])
    rows = Rows(**looked_up(6, 8), steps=nadamw_steps(150), since=since)
    expected = rows.replayed()
    assert equal(caught_up(rows, whole=True), expected)
    assert equal(caught_up(rows, base=7000), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_row_looked_up_often_makes_its_steps_once_and_others_none(dtype: torch.dtype) -> None:
    rows = Rows(**looked_up(9, 4), steps=nadamw_steps(40))
    ids = torch.tensor([5, 2, 5, 5, 2, 7, 5, -1, 9, HUGE, -HUGE], dtype=dtype, device=KERNELS_DEVICE)
    rows.since = np.where(np.isin(np.arange(9), ids.cpu()), 3, 0)
    expected = rows.replayed()
    for array, before in zip(expected, (rows.theta, rows.m, rows.v), strict=True):
        array[rows.since == 0] = before[rows.since == 0]
    assert equal(caught_up(rows, ids=ids), expected)


def test_moments_come_to_rest_among_the_denormals_as_rounding_has_it() -> None:
    generator = np.random.default_rng(3)
    size = 10.0 ** generator.uniform(-45, -30, (1, 800))
    m = size * np.sign(generator.standard_normal((1, 800)))
    rows = Rows(np.full((1, 800), 0.3), m, size, nadamw_steps(700, first=9000))
    found = caught_up(rows)
    assert equal(found, rows.replayed())
    assert np.abs(found[1][found[1] != 0]).min() == F(1e-45), "no denormal is rounded to zero by 0.93"


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.9, 0.999, 1 - 1e-9, 1.0])
def test_any_decay_of_the_moments(beta: float) -> None:
    values = looked_up(40, 8)
    values["m"][::2] *= 1e-33
    values["v"][::3] *= 1e-28
    for betas in ((beta, BETA2), (BETA1, beta)):
        rows = Rows(**flattened(values), steps=nadamw_steps(300), betas=betas)
        assert equal(caught_up(rows), rows.replayed()), betas


@pytest.mark.parametrize(
    "changes",
    [{"decay": 0.0}, {"lr": 0.0}, {"eps": 0.0}, {"eps": 1.0}, {"lr": 20.0}, {"lr": 100.0}, {"lr": float("inf")}],
    ids=str,
)
def test_steps_of_any_kind(changes: dict[str, Any]) -> None:
    values = looked_up(60, 8)
    values["m"][:20] = 0.0
    values["v"][:10] = 0.0
    rows = Rows(**flattened(values, 3), steps=nadamw_steps(150, **changes))
    assert equal(caught_up(rows), rows.replayed())


@pytest.mark.parametrize("count", [3, 40, 300])
def test_every_mix_of_special_values(count: int) -> None:
    theta, m, v = (grid.reshape(1, -1) for grid in np.meshgrid(SPECIAL, SPECIAL, np.abs(SPECIAL)))
    together = Rows(theta, m, v, nadamw_steps(count), average=theta.astype(F)[:, ::-1].copy())
    assert equal(caught_up(together), together.replayed())
    some = np.random.default_rng(count).integers(0, theta.size, 16)  # in rows of their own, so that some are settled
    theta, m, v = (array[0, some].reshape(-1, 1) for array in (theta, m, v))
    alone = Rows(theta, m, v, nadamw_steps(min(count, 50)))
    assert equal(caught_up(alone), alone.replayed())


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories())
def test_any_history_of_any_rows(rows: Rows) -> None:
    if len(rows.steps):
        assert equal(caught_up(rows), rows.replayed())


@pytest.mark.parametrize("factor", [4.0, 2.0**10])
def test_a_larger_bound_is_wrong(factor: float) -> None:
    """In rows of one element each, of which the bound decides alone; those that it decides otherwise are kept."""
    rows = Rows(**looked_up(4000, 1), steps=nadamw_steps(400, first=50))
    differ = (rows.replayed()[0] != rows.replayed(HALF_ULP * factor)[0])[:, 0]
    assert differ.any()
    theta, m, v = (array[differ][:3] for array in (rows.theta, rows.m, rows.v))
    rows = Rows(theta, m, v, nadamw_steps(400, first=50))
    assert equal(caught_up(rows), rows.one_by_one())
    assert not equal(caught_up(rows, HALF_ULP * factor), rows.one_by_one())


@pytest.mark.parametrize("width", [1, 5, 32, 130])
def test_rows_are_moved_as_the_compiled_kernel_moves_them(width: int) -> None:
    generator = np.random.default_rng(width)
    rows, count = 30, 11
    ids = np.sort(generator.choice(rows, count, replace=False))
    segments = np.sort(np.concatenate([np.arange(count), generator.integers(0, count, 20)]))
    arrays = [generator.standard_normal((rows, width)).astype(F) * F(10.0 ** (-12 * k)) for k in range(3)]
    arrays[2] = np.abs(arrays[2])
    arrays[1][ids[0]], arrays[2][ids[1]] = 0.0, 1e-44
    sums = generator.standard_normal((len(segments), width)).astype(F)
    sums[3] = 0.0
    numbers = [F(value) for value in (1 - 1e-4, BETA1, 1 - BETA1, BETA2, 1 - BETA2, 3e-9, 2e-3)]
    expected = [array.copy() for array in arrays]
    theta, m, v = (array.reshape(-1) for array in expected)
    decay, beta1, rest1, beta2, rest2, addend, factor = numbers
    replay.move_rows(ids, width, theta, sums[:count], m, v, decay, beta1, rest1, beta2, rest2, addend, factor)
    found = [on_kernels_device(array) for array in arrays]
    stamps = torch.full((rows,), 6, dtype=torch.int32, device=KERNELS_DEVICE)
    named = torch.full((len(segments),), -HUGE, dtype=torch.int64, device=KERNELS_DEVICE)
    named[:count] = on_kernels_device(ids)
    launches.move_found(
        launches.RowSums(named, on_kernels_device(segments).int(), on_kernels_device(sums)),
        stamps,
        7,
        launches.RowArrays(*found),
        numbers,
    )
    assert equal([array.cpu().numpy() for array in found], expected)
    assert np.array_equal(stamps.cpu().numpy() == 7, np.isin(np.arange(rows), ids))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weight", [1.0, 0.5, 0.3, 0.0])
def test_the_average_is_taken_of_the_current_rows_alone(weight: float, fused: bool) -> None:
    generator = np.random.default_rng(0)
    theta, average = generator.standard_normal((2, 70, 5)).astype(F)
    stamps = generator.integers(3, 6, 70).astype(np.int32)
    expected = average.copy()
    replay.average_rows(np.flatnonzero(stamps == 5), 5, expected.reshape(-1), theta.reshape(-1), F(weight), fused)
    found = on_kernels_device(average)
    arrays = launches.RowArrays(
        on_kernels_device(theta), on_kernels_device(theta), on_kernels_device(theta), found, fused
    )
    launches.average_current(on_kernels_device(stamps), 5, arrays, F(weight))
    assert equal([found.cpu().numpy()], [expected])
