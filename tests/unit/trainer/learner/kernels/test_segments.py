"""Sums by row against sums made in the documented order by hand, and against exact ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.table_rows import on_kernels_device

launches = pytest.importorskip("trainer.learner.kernels.launches", reason="Triton is not installed (make extras)")

Entry = tuple[int | None, np.ndarray]
"""A row, None where there is none, and a value of it."""


def by_hand(ids: np.ndarray, values: np.ndarray) -> dict[int, np.ndarray]:
    """The sums in the order that `segments` describes, one addition at a time."""
    order = np.argsort(ids, kind="stable")
    level: list[Entry] = [(int(ids[i]), values[i]) for i in order]
    sums: dict[int, np.ndarray] = {}
    while True:
        chunks = [level[start : start + launches.CHUNK] for start in range(0, len(level), launches.CHUNK)]
        parts: list[Entry] = []
        for number, chunk in enumerate(chunks):
            before = chunks[number - 1][-1][0] if number else None
            after = chunks[number + 1][0][0] if number + 1 < len(chunks) else None
            runs = [(row, [value for _, value in run]) for row, run in itertools.groupby(chunk, key=lambda one: one[0])]
            slots: list[Entry] = [(None, np.zeros(0)), (None, np.zeros(0))]
            for place, (row, run) in enumerate(runs):
                total = np.zeros_like(values[0])
                for value in run:
                    total = total + value if row is not None else total
                begun, goes_on = place == 0 and row == before, place == len(runs) - 1 and row == after
                if row is None:
                    continue
                if len(runs) == 1 and (begun or goes_on):
                    slots = [(row, total), (row, np.zeros_like(total))]
                elif begun or goes_on:
                    slots[0 if begun else 1] = (row, total)
                else:
                    sums[row] = total
            parts += slots
        if len(chunks) == 1:
            return sums
        level = parts


def summed(ids: np.ndarray, values: np.ndarray) -> dict[int, np.ndarray]:
    found = launches.sum_by_row(on_kernels_device(ids), on_kernels_device(values))
    count = int(found.segments[-1]) + 1
    assert np.array_equal(found.rows[:count].cpu(), np.unique(ids))
    return dict(zip(found.rows[:count].tolist(), found.sums[:count].cpu().numpy(), strict=True))


def alike(found: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[row].view(np.int32), expected[row].view(np.int32)) for row in found
    )


def skewed(count: int, rows: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) ** 4 * rows).astype(np.int64)


CASES = {
    "one": np.zeros(1, dtype=np.int64),
    "one row, a chunk": np.zeros(32, dtype=np.int64),
    "one row, a chunk and one": np.zeros(33, dtype=np.int64),
    "one row, three levels": np.zeros(700, dtype=np.int64),
    "all different": np.random.default_rng(1).permutation(100),
    "runs that end with their chunk": np.repeat(np.arange(5), 32),
    "runs that end one after their chunk": np.repeat([7, 3, 5, 1], [33, 32, 31, 32]),
    "a long run between short ones": np.repeat(np.arange(6), [1, 30, 200, 3, 65, 1]),
    "skewed": skewed(900, 200),
    "skewed, few rows": skewed(500, 4),
}


@pytest.mark.parametrize("case", CASES)
def test_sums_are_made_in_the_order_that_is_promised(case: str) -> None:
    ids = np.random.default_rng(2).permutation(CASES[case])
    values = np.random.default_rng(3).standard_normal((len(ids), 3)).astype(np.float32)
    values *= np.float32(10.0) ** np.random.default_rng(4).integers(-9, 9, (len(ids), 1)).astype(np.float32)
    assert alike(summed(ids, values), by_hand(ids, values))


@pytest.mark.parametrize("case", CASES)
def test_every_value_counts_once(case: str) -> None:
    ids = np.random.default_rng(2).permutation(CASES[case])
    values = np.random.default_rng(3).integers(-50, 50, (len(ids), 2)).astype(np.float32)
    expected = {int(row): values[ids == row].sum(0, dtype=np.float64).astype(np.float32) for row in np.unique(ids)}
    assert alike(summed(ids, values), expected)


@pytest.mark.parametrize("width", [1, 130])
def test_any_width(width: int) -> None:
    ids, values = skewed(70, 5), np.random.default_rng(3).standard_normal((70, width)).astype(np.float32)
    assert alike(summed(ids, values), by_hand(ids, values))


def test_a_row_of_few_look_ups_is_summed_as_torch_s_dense_backward_on_the_cpu_sums_it() -> None:
    ids, values = skewed(32, 9), np.random.default_rng(3).standard_normal((32, 4)).astype(np.float32)
    dense = torch.ops.aten.embedding_dense_backward(torch.from_numpy(values), torch.from_numpy(ids), 9, -1, False)
    assert alike(summed(ids, values), {int(row): dense[int(row)].numpy() for row in np.unique(ids)})


def test_a_sum_of_negative_zeros_is_the_dense_gradient_s() -> None:
    values = np.full((40, 2), -0.0, dtype=np.float32)
    assert alike(summed(np.zeros(40, dtype=np.int64), values), {0: np.zeros(2, dtype=np.float32)})


def test_int32_ids() -> None:
    ids, values = skewed(80, 9).astype(np.int32), np.random.default_rng(3).standard_normal((80, 3)).astype(np.float32)
    assert alike(summed(ids, values), by_hand(ids, values))
