"""Lines of alpha.jsonl merged: one estimate stands for its neighbors, with exact counts and sums of all beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_estimates(early: Mapping[str, Any], late: Mapping[str, Any]) -> dict[str, Any]:
    """One line for two, of which `early` comes first; each may be the line of an estimate or a merged one.

    The first estimate stays as it is: one that is chosen by its step alone is a fair sample of those it stands for.
    Beside it stand `estimates`, how many those are, `last_step`, and under `merged` their `outcomes`, how many carry a
    number (`measured`) and are `negative`, and sums over those that do: `pairs` (count, Σs, Σc, Σs², Σsc, Σc²) of
    slope s and curvature c, and `per_rate` (Σ s/η, Σ c/η²), η the learning rate.
    """
    sums, others = summed(early), summed(late)
    outcomes = dict(sums["outcomes"])
    for name, count in others["outcomes"].items():
        outcomes[name] = outcomes.get(name, 0) + count
    merged: dict[str, Any] = {"outcomes": dict(sorted(outcomes.items()))}
    for name in ("measured", "negative"):
        merged[name] = sums[name] + others[name]
    for name in ("pairs", "per_rate"):
        merged[name] = [one + other for one, other in zip(sums[name], others[name], strict=True)]
    return {
        **early,
        "estimates": early.get("estimates", 1) + late.get("estimates", 1),
        "last_step": late.get("last_step", late["step"]),
        "merged": merged,
    }


def summed(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """`merged` of a line, or what it would be of a single estimate."""
    if "merged" in line:
        return line["merged"]
    relative, slope, curvature, rate = (line.get(name) for name in ("relative", "slope", "curvature", "learning_rate"))
    pairs, per_rate = [0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0]
    if relative is not None and slope is not None and curvature is not None:
        pairs = [1, slope, curvature, slope * slope, slope * curvature, curvature * curvature]
        if rate is not None and rate > 0:
            per_rate = [slope / rate, curvature / rate**2]
    return {
        "outcomes": {str(line.get("outcome", "unknown")): 1},
        "measured": int(relative is not None),
        "negative": int(relative is not None and relative < 0),
        "pairs": pairs,
        "per_rate": per_rate,
    }
