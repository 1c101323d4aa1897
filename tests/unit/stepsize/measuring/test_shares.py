"""What processes sum up of their shares, merged, is what one process tells of all rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stepsize.errors import MeasurementError
from stepsize.losses import AutogradLoss, BCEWithLogits, Loss, SquaredError, WeightedRows
from stepsize.measuring.curvature import SUMMARY, row_forms, secant_summary, summarize
from stepsize.measuring.shares import SHARE, merged_shares, secant_share, share_of

LOSSES: dict[str, Loss] = {
    "clicks": BCEWithLogits(),
    "weighted clicks": WeightedRows(BCEWithLogits(positive_weight=3.0)),
    "squares": SquaredError(),
    "own": AutogradLoss(lambda z, y: torch.sin(z - y) + 0 * z),
}


def batch(loss: Loss, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    z, tangent = (
        3 * torch.randn(rows, generator=generator, dtype=dtype),
        torch.randn(rows, generator=generator, dtype=dtype),
    )
    y = (torch.rand(rows, generator=generator) < 0.5).to(dtype)
    if isinstance(loss, WeightedRows):
        y = torch.stack([y, torch.rand(rows, generator=generator).to(dtype) + 0.1], 1)
    return z, tangent, y


@dataclass(frozen=True)
class Shares:
    """Rows [start, stop) of each process, one of them without any."""

    rows: int

    def __iter__(self) -> Iterator[slice]:
        cuts = [0, self.rows // 3, self.rows // 3, self.rows]
        return iter([slice(*bounds) for bounds in pairwise(cuts)])


def assert_same(merged: list[float], whole: Tensor) -> None:
    for name, mine, theirs in zip(SUMMARY, merged, whole.tolist(), strict=True):
        assert (math.isnan(mine) and math.isnan(theirs)) or mine == pytest.approx(theirs, rel=1e-6), name


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_amount_to_the_whole(name: str, rows: int, dtype: torch.dtype) -> None:
    """Errors and covariances too, by one pass and by the secant."""
    loss, eps = LOSSES[name], torch.finfo(dtype).eps
    z, tangent, y = batch(loss, rows, dtype)
    told = [share_of(loss, z[own], tangent[own], y[own], eps=eps).tolist() for own in Shares(rows)]
    assert_same(merged_shares(told), summarize(row_forms(loss, z, tangent, y, eps=eps)))
    later = z + 1e-3 * tangent
    told = [secant_share(loss, z[own], later[own], y[own], eps=eps).tolist() for own in Shares(rows)]
    assert_same(merged_shares(told, from_noise=True), secant_summary(loss, z, later, y, eps=eps))


@pytest.mark.parametrize("reach", [1e-9, 1.0])
def test_what_rounding_may_have_left_is_judged_by_all_rows(reach: float) -> None:
    loss, eps = BCEWithLogits(), torch.finfo(torch.float32).eps
    z, tangent, y = batch(loss, 37, torch.float32)
    tangent = tangent * eps
    before, change = 1.0, reach
    told = [share_of(loss, z[own], tangent[own], y[own], eps=eps).tolist() for own in Shares(37)]
    for share in told:
        share[SHARE.index("common_before")], share[SHARE.index("common_change")] = before**2, change**2
        share[SHARE.index("stored")] = 0.0
    rounding = torch.tensor(16 * eps * reach / before)
    expected = summarize(row_forms(loss, z, tangent, y, eps=eps, rounding=rounding))
    assert_same(merged_shares(told), expected)
    assert math.isinf(expected[SUMMARY.index("curvature_error")]) == (reach == 1.0)


def test_no_rows_anywhere_and_several_logits_are_refused() -> None:
    loss, nothing = BCEWithLogits(), torch.zeros(0)
    empty = share_of(loss, nothing, nothing, nothing, eps=1e-7).tolist()
    with pytest.raises(MeasurementError, match="no rows on any process"):
        merged_shares([empty, empty])
    with pytest.raises(MeasurementError, match="one logit a row"):
        share_of(loss, torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2), eps=1e-7)


def test_infinities_that_cancel_are_no_number_as_in_one_process() -> None:
    """A step so long that logits overflow: the estimate is void, and the run goes on to its recovery."""
    loss, eps = BCEWithLogits(), torch.finfo(torch.float32).eps
    z, later, y = torch.zeros(4), torch.tensor([math.inf, 0.3, math.inf, 0.3]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    told = [secant_share(loss, z[own], later[own], y[own], eps=eps).tolist() for own in (slice(0, 2), slice(2, 4))]
    merged = dict(zip(SUMMARY, merged_shares(told, from_noise=True), strict=True))
    assert math.isnan(merged["slope"])
