"""A batch of which every process has a share: what each sums up of its own rows, and what all of it amounts to.

Nothing is exchanged while a measurement runs. Each process brings the sums over its share to its host as it would bring
the finished numbers; there they are gathered and merged, so that a device never waits for another one's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from stepsize.errors import MeasurementError
from stepsize.losses import Loss, curvature_along
from stepsize.measuring.curvature import SHORTEST, SUMMARY, bounded_logits, pass_rounding, secant_tangent
from stepsize.measuring.direction import Direction
from stepsize.measuring.kept import TensorsApart
from stepsize.measuring.passes import loss_undisturbed


class Gather(Protocol):
    """Every process's numbers, in the order of their ranks. All call it, in the same order, with as many numbers."""

    def __call__(self, numbers: Sequence[float]) -> list[list[float]]: ...


SHARE: tuple[str, ...] = (
    "rows",
    "loss",
    "slope",
    "curvature",
    "size",
    "slope_squares",
    "curvature_squares",
    "products",
    "error",
    "seen",
    "seen_with_one",
    "seen_one",
    "bounded",
    "noise",
    "own_before",
    "own_change",
    "common_before",
    "common_change",
    "stored",
    "spacing",
    "least_error",
)
"""What `share_of` holds, in order: means of loss, slope, curvature and its absolute value, squares about the means of
slope and curvature, and sums. Of a loss that is not convex in the logits, what rounding leaves is taken as smaller."""


def share_of(
    loss: Loss,
    z: Tensor,
    tangent: Tensor,
    targets: Tensor,
    *,
    eps: float,
    direction: Direction | None = None,
    noise: Tensor | None = None,
    live: Mapping[int, str] | None = None,
    apart: TensorsApart | None = None,
) -> Tensor:
    """Of logits `z` (R,) and their derivative `tangent`, R = 0 or more rows, (len(SHARE),) float64 on their device.

    `eps`, `noise`, `live` and `apart` are those of `row_forms`; `direction` tells how far rounding reaches, without
    `noise`.

    Raises: MeasurementError for more than one logit a row.
    """
    if z.numel() != len(z):
        raise MeasurementError(
            f"the model returned logits {tuple(z.shape)}; across processes α* is measured of one logit a row"
        )
    tiny = torch.finfo(z.dtype).tiny
    if z.dtype in (torch.float16, torch.bfloat16):
        z, tangent = z.float(), tangent.float()
    with torch.no_grad(), loss_undisturbed(loss, z.device, live or {}, apart):
        along = curvature_along(loss, z, targets)
        rows = [value.double().reshape(-1) for value in (loss.per_sample(z, targets), loss.slope(z, targets, tangent))]
        rows.append(along(tangent).double().reshape(-1))
        rows.append(rows[-1].abs())
        errors = loss.curvature_error(z, targets, tangent, eps).double()
        bounded, one = bounded_logits(z), torch.ones_like(z)
        seen, plus, minus, alone = (
            along(value).double().sum() for value in (bounded, bounded + one, bounded - one, one)
        )
        left = z.new_zeros(()) if noise is None else along(noise.to(z.dtype)).double().abs().sum()
    means = [value.sum() / max(len(z), 1) for value in rows]
    slope, curvature = (value - mean for value, mean in zip(rows[1:3], means[1:3], strict=True))
    own, common = _lengths(direction, z)
    values = direction.moved()[0] if direction is not None else []
    stored = max((torch.finfo(value.dtype).eps for value in values), default=0.0)
    told = [len(z), *means, slope.square().sum(), curvature.square().sum(), (slope * curvature).sum(), errors.sum()]
    told += [seen, (plus - minus) / 4, alone, bounded.double().sum(), left, *own, *common, stored, eps, tiny]
    # a number goes to a device with a kernel that writes it: a copy would wait for what is queued there
    return torch.stack(
        [value.double() if isinstance(value, Tensor) else z.new_full((), value, dtype=torch.float64) for value in told]
    )


def secant_share(loss: Loss, z: Tensor, later: Tensor, targets: Tensor, *, eps: float, **beside: Any) -> Tensor:
    """`share_of` along the difference of two passes' logits, as `secant_summary` is of all rows."""
    tangent, noise = secant_tangent(z, later, eps=eps)
    return share_of(loss, z, tangent, targets, eps=eps, noise=noise, **beside)


def _lengths(direction: Direction | None, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """‖θ0‖² and ‖d‖² of the rows that this process's share looks up, and of what all processes have alike."""
    if direction is None:
        return [like.new_zeros(())] * 2, [like.new_zeros(())] * 2
    calls = [call for tables in direction.lookups for kept in tables.values() for call in kept]
    own = [call.before for call in calls], [call.difference for call in calls if call.difference is not None]
    common = list(direction.values.values()), list(direction.differences.values())
    lengths = [get_total_norm(part).double().square() if part else like.new_zeros(()) for part in (*own, *common)]
    return lengths[:2], lengths[2:]


def _sum(values: Iterable[float]) -> float:
    """Rounded once; NaN where infinities cancel or what is summed overflows, which is an error to `math.fsum`."""
    try:
        return math.fsum(values)
    except (ValueError, OverflowError):
        return math.nan


def merged_shares(shares: Sequence[Sequence[float]], *, from_noise: bool = False) -> list[float]:
    """What `summarize` would have told of all rows together, of every process's `share_of`; `from_noise`: given it."""
    named = [dict(zip(SHARE, share, strict=True)) for share in shares]
    whole = {name: _sum(share[name] for share in named) for name in SHARE}
    rows = whole["rows"]
    if not rows:
        raise MeasurementError("before_step: B1 has no rows on any process; give it at least one")

    def mean(name: str) -> float:
        return _sum(share["rows"] * share[name] for share in named) / rows

    def spread(squares: str, one: str, other: str) -> float:
        """Of the two means: squares about each share's own means, and those of the shares' means."""
        if rows < 2:
            return math.nan
        between = (share["rows"] * (share[one] - mean(one)) * (share[other] - mean(other)) for share in named)
        return (whole[squares] + _sum(between)) / (rows * (rows - 1))

    if from_noise:
        least = whole["noise"] / rows
    else:
        rounding = pass_rounding(
            stored=max(share["stored"] for share in named),
            eps=max(share["spacing"] for share in named),
            before=max(math.sqrt(whole["own_before"] + named[0]["common_before"]), SHORTEST),
            change=math.sqrt(whole["own_change"] + named[0]["common_change"]),
        )
        centre = whole["bounded"] / rows
        apart = whole["seen"] - 2 * centre * whole["seen_with_one"] + centre**2 * whole["seen_one"]
        least = rounding**2 * (min(whole["seen"], abs(apart)) if rows > 1 else whole["seen"]) / rows
    error = max(whole["error"] / rows, named[0]["least_error"])
    summary = {
        "rows": rows,
        "loss": mean("loss"),
        "slope": mean("slope"),
        "curvature": mean("curvature"),
        "curvature_error": math.inf if mean("size") <= least else error,
        "slope_variance": spread("slope_squares", "slope", "slope"),
        "curvature_variance": spread("curvature_squares", "curvature", "curvature"),
        "covariance": spread("products", "slope", "curvature"),
    }
    return [summary[name] for name in SUMMARY]
