"""A step of several ranks is that of one: loss, weights, moments, α* and its error, in float64."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.ranks.processes import on_each_number_of_ranks
from tests.unit.trainer.ranks.workload import (
    CASES,
    COUNTED,
    IN_FLOAT32,
    LARGE_ROWS,
    MEASURED,
    MEASURED_FAR,
    PER_FEATURE,
    PLAIN,
    STEPS,
    WIDTH,
    everything,
    inputs_counted,
    settings_of,
)


def assembled(found: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Whole tensors of what the ranks hold; what all have alike must be the same bits."""
    whole = {}
    for name, value in found[0]["tensors"].items():
        parts = [one["tensors"][name] for one in found]
        parameter = name.split("/", 1)[1]
        if parameter in found[0]["places"] and value.ndim:
            whole[name] = torch.empty((sum(map(len, parts)), *value.shape[1:]), dtype=value.dtype)
            for one, held in zip(found, parts, strict=True):
                first, step, _ = one["places"][parameter]
                whole[name][first::step] = held
        else:
            assert all(torch.equal(value, other) for other in parts), name
            whole[name] = value
    return whole


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    return on_each_number_of_ranks([1, 2, 3], everything, folder=tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_loss_weights_moments_and_alpha_are_those_of_one_rank(
    by_ranks: dict[int, list[dict[str, Any]]], ranks: int, case: str
) -> None:
    alone = by_ranks[1][0]["cases"][case]
    found = [one["cases"][case] for one in by_ranks[ranks]]
    for one in found:
        assert one["losses"] == found[0]["losses"]
        assert one["estimates"] == found[0]["estimates"]
    assert found[0]["losses"] == pytest.approx(alone["losses"], rel=1e-10)
    assert len(found[0]["estimates"]) == len(alone["estimates"]) == STEPS + 1
    for ours, theirs in zip(found[0]["estimates"], alone["estimates"], strict=True):
        assert ours[:4] == theirs[:4]
        for mine, other in zip(ours[4:], theirs[4:], strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or mine == pytest.approx(other, rel=1e-9, abs=1e-14)
    whole = assembled(found)
    for name, value in alone["tensors"].items():
        torch.testing.assert_close(whole[name], value, rtol=1e-10, atol=1e-12, msg=name)
    rows = settings_of(case)["table_rows"]
    for one in found:
        for name, (_, _, of) in one["places"].items():
            assert of == rows
            assert len(one["tensors"][f"model/{name}"]) <= math.ceil(rows / ranks)


def numbers_of(run: dict[str, Any], tensors: dict[str, Tensor], at: str) -> Tensor:
    """(N,) float64: every loss of a run, every number of a kind of its estimates, or every weight and moment."""
    if at == "tensors":
        return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])
    if at == "losses":
        return torch.tensor(run["losses"], dtype=torch.float64)
    field = {"loss": 4, "slope": 5, "curvature": 6, "relative": 7}[at]
    return torch.tensor([estimate[field] for estimate in run["estimates"]], dtype=torch.float64)


@pytest.mark.parametrize("at", ["losses", "tensors", "loss", "slope", "curvature", "relative"])
@pytest.mark.parametrize("case", IN_FLOAT32)
@pytest.mark.parametrize("ranks", [2, 3])
def test_in_float32_ranks_are_as_far_from_one_as_its_own_rounding(
    by_ranks: dict[int, list[dict[str, Any]]], ranks: int, case: str, at: str
) -> None:
    """A run on ranks takes the same sums in another order, so its error is of the size of one rank's.

    With e the distance of one rank's float32 run from its float64 run, both float32 runs lie within about e of the
    exact one, and so within 2 e of each other.
    """
    exact, alone = by_ranks[1][0]["cases"][case], by_ranks[1][0]["float32"][case]
    found = [one["float32"][case] for one in by_ranks[ranks]]
    one = numbers_of(alone, alone["tensors"], at)
    rounding = (one - numbers_of(exact, exact["tensors"], at)).norm()
    assert 0 < rounding < 1e-4 * one.norm()
    assert (numbers_of(found[0], assembled(found), at) - one).norm() <= 2 * rounding


@pytest.mark.parametrize("ranks", [2, 3])
def test_auto_chooses_the_same_rates(by_ranks: dict[int, list[dict[str, Any]]], ranks: int) -> None:
    alone = by_ranks[1][0]["auto"]
    assert alone[-20] > 100 * alone[0]  # it has found one
    for one in by_ranks[ranks]:
        assert one["auto"] == by_ranks[ranks][0]["auto"]
        assert one["auto"] == pytest.approx(alone, rel=1e-8)


def test_no_rank_ever_holds_more_than_its_rows_or_a_gradient_of_the_table(
    by_ranks: dict[int, list[dict[str, Any]]],
) -> None:
    assert by_ranks[1][0]["largest"] >= LARGE_ROWS * WIDTH  # what is looked for is found where it is
    for ranks in (2, 3):
        for one in by_ranks[ranks]:
            assert one["largest"] <= math.ceil(LARGE_ROWS / ranks) * WIDTH


SUMS = 22
"""Numbers that ranks tell one another of an estimate."""


def rows_asked(case: str, rows: int, seed: int, ranks: int, *, first: int | None = None) -> list[list[int]]:
    """How many different rows each rank asks of each, of a batch of so many rows, or of the `first` of them."""
    ids = inputs_counted(case, rows, seed).ids
    if COUNTED[case].get("per_feature"):
        ids = ids + torch.tensor([0, *accumulate(PER_FEATURE)][:-1]).unsqueeze(1)
    bounds = [min(rows * rank // ranks, rows if first is None else first) for rank in range(ranks + 1)]
    shares = [ids[:, low:high].unique().tolist() for low, high in pairwise(bounds)]
    return [[sum(row % ranks == owner for row in share) for owner in range(ranks)] for share in shares]


def to_others(asked: list[list[int]], rank: int) -> tuple[int, int]:
    """Rows that a rank asks of others, and that others ask of it."""
    given = sum(of_other[rank] for other, of_other in enumerate(asked) if other != rank)
    return sum(asked[rank]) - asked[rank][rank], given


@pytest.mark.parametrize("kind", [PLAIN, MEASURED, MEASURED_FAR])
@pytest.mark.parametrize("case", COUNTED)
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_bytes_that_a_step_sends_are_those_of_the_formula(
    by_ranks: dict[int, list[dict[str, Any]]], ranks: int, case: str, kind: str
) -> None:
    size = COUNTED[case].get("dtype", torch.float64).itemsize
    fraction = COUNTED[case].get("probe_fraction", 1.0)
    for rank, one in enumerate(by_ranks[ranks]):
        found = one["bytes"][case]
        tables, width = len(found["widths"]), sum(found["widths"])
        seed, sent = found["sent"][kind]
        wanted, given = to_others(rows_asked(case, 29, seed, ranks), rank)
        probes = rows_asked(case, 31, seed + 1, ranks, first=math.ceil(31 * fraction))
        wanted_for_alpha, given_for_alpha = (0, 0) if kind == PLAIN else to_others(probes, rank)
        flat = (found["others"] + 2 + tables) * size  # and of its inputs, its loss and each table's gradient
        passes = 0 if kind == PLAIN else 2 if case == "secant" and kind == MEASURED else 1
        expected = {
            "counts": 8 * (ranks - 1) * tables * (1 + passes),
            "ids": 4 * tables * (wanted + passes * wanted_for_alpha),
            "rows": size * width * (given + (2 * given_for_alpha if passes == 2 else 0)),
            "gradients of rows": size * width * wanted,
            "gradients": 2 * (ranks - 1) * flat // ranks,
        }
        if passes:
            expected["control"] = 8 * SUMS * (ranks - 1)
        if passes == 1:  # at θ0, and how far they moved
            expected["rows for α*"] = 2 * size * width * given_for_alpha
        assert sent == expected
