"""A step of several ranks is that of one: loss, weights, moments, α* and its error, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.ranks.processes import on_ranks
from tests.unit.trainer.ranks.workload import CASES, STEPS, settings_of, trained_all


def assembled(found: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Whole tensors of what the ranks hold; what all have alike must be the same bits."""
    whole = {}
    for name, value in found[0]["tensors"].items():
        parts = [one["tensors"][name] for one in found]
        parameter = name.split("/", 1)[1]
        if parameter in found[0]["places"] and value.ndim:
            for one, held in zip(found, parts, strict=True):
                start, stop, _ = one["places"][parameter]
                assert len(held) == stop - start
            whole[name] = torch.cat(parts)
        else:
            assert all(torch.equal(value, other) for other in parts), name
            whole[name] = value
    return whole


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    return {ranks: on_ranks(ranks, trained_all, folder=tmp_path_factory.mktemp("ranks")) for ranks in (1, 2, 3)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_loss_weights_moments_and_alpha_are_those_of_one_rank(
    by_ranks: dict[int, list[dict[str, Any]]], ranks: int, case: str
) -> None:
    alone = by_ranks[1][0][case]
    found = [one[case] for one in by_ranks[ranks]]
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
        for start, stop, of in one["places"].values():
            assert of == rows
            assert stop - start <= math.ceil(rows / ranks)
