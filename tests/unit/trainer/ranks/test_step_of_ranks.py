"""A step of several ranks is that of one: loss, weights, moments, α* and its error, in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.ranks.processes import on_each_number_of_ranks
from tests.unit.trainer.ranks.workload import (
    CASES,
    IN_FLOAT32,
    LARGE_ROWS,
    STEPS,
    WIDTH,
    batch,
    everything,
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


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_bytes_that_a_step_sends_are_those_of_the_formula(
    by_ranks: dict[int, list[dict[str, Any]]], ranks: int
) -> None:
    number = torch.float64.itemsize

    def distinct(seed: int, rows: int) -> list[list[int]]:
        """How many different rows each rank asks of each, of a batch of so many rows."""
        ids = batch(rows, seed, 37).ids
        bounds = [rows * rank // ranks for rank in range(ranks + 1)]
        shares = [ids[:, low:high].unique().tolist() for low, high in pairwise(bounds)]
        return [[sum(row % ranks == owner for row in share) for owner in range(ranks)] for share in shares]

    for rank, one in enumerate(by_ranks[ranks]):
        plain, measured = one["bytes"]["sent"]
        for sent, seed in ((plain, 1), (measured, 3)):
            asked = distinct(seed, 29)
            elsewhere = sum(asked[rank]) - asked[rank][rank]
            given = sum(asked[other][rank] for other in range(ranks) if other != rank)
            probes = distinct(seed + 1, 31)
            asked_for_alpha = sum(probes[rank]) - probes[rank][rank]
            given_for_alpha = sum(probes[other][rank] for other in range(ranks) if other != rank)
            alpha = sent is measured
            assert sent["counts"] == 8 * (ranks - 1) * (2 if alpha else 1)
            assert sent["ids"] == 4 * (elsewhere + (asked_for_alpha if alpha else 0))
            assert sent["rows"] == number * WIDTH * given
            assert sent["gradients of rows"] == number * WIDTH * elsewhere
            assert sent.get("rows for α*", 0) == (2 * number * WIDTH * given_for_alpha if alpha else 0)
            flat = (one["bytes"]["others"] + 3) * number  # and of its inputs, its loss and the table's gradient
            assert sent["gradients"] == 2 * (ranks - 1) * flat // ranks
            assert set(sent) <= {"counts", "ids", "rows", "gradients of rows", "gradients", "rows for α*"}
