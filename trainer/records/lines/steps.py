"""Lines of steps.jsonl merged: sums stay exact, means are weighted by steps, and what a mean hides stands beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

BIN = math.log(1.02)
"""Width of a bin of step times or rates, as a logarithm: a quantile is within 1 % of the exact one."""
ZERO_BIN = -100_000
"""The bin of what has no logarithm."""
SUMMED = ("rows", "seconds")
AVERAGED = ("learning_rate", "scheduled_rate")
SPREAD = ("learning_rate", "seconds")
"""Fields whose distribution is kept."""
OWN = {
    "step",
    "steps",
    "last_step",
    "epoch",
    "start",
    "phases",
    "loss",
    "nonfinite",
    "spread",
    "withheld",
    *SUMMED,
    *AVERAGED,
}


def merge_steps(early: Mapping[str, Any], late: Mapping[str, Any]) -> dict[str, Any]:
    """One line for two, of which `early` comes first; each may be the line of a step or a merged one.

    `step`, `epoch`, `start`: of the first step; `steps`: how many there are, and `last_step` if some between are
    missing; `rows`, `seconds`, `phases`: sums;
    `learning_rate`, `scheduled_rate`: means; `loss`: mean of the finite ones, `nonfinite`: how many are not, if any.
    `spread`: by field `least`, `most`, `bins` (steps by ⌊ln x / ln 1.02⌋), and for a rate `squares`, Σ (x − mean)².
    `withheld`: how many steps were, by cause. Other fields stay if both lines agree on them.
    """
    counts = early.get("steps", 1), late.get("steps", 1)
    merged: dict[str, Any] = {}
    for name, value in early.items():
        if name in ("step", "epoch", "start"):
            merged[name] = value
        elif name in SUMMED:
            merged[name] = _sum(value, late.get(name))
        elif name in AVERAGED:
            merged[name] = _mean(value, late.get(name), *counts)
        elif name not in OWN and name in late and late[name] == value:
            merged[name] = value
    phases = [line.get("phases") or {} for line in (early, late)]
    merged["phases"] = {name: _sum(phases[0].get(name), phases[1].get(name)) for name in phases[0] | phases[1]}
    lost = [_nonfinite(line) for line in (early, late)]
    finite = [count - one for count, one in zip(counts, lost, strict=True)]
    merged["loss"] = _mean(early.get("loss"), late.get("loss"), *finite)
    merged["steps"] = sum(counts)
    last = late.get("last_step", late["step"] + counts[1] - 1)
    if last != early["step"] + sum(counts) - 1:
        merged["last_step"] = last
    if any(lost):
        merged["nonfinite"] = sum(lost)
    withheld = [_withheld(line) for line in (early, late)]
    if any(withheld):
        merged["withheld"] = {cause: _sum(*(one.get(cause) for one in withheld)) for cause in withheld[0] | withheld[1]}
    merged["spread"] = _merged_spread(early, late, counts)
    return merged


def bin_of(value: float) -> int:
    """The bin of a step's time or rate."""
    return math.floor(math.log(value) / BIN) if value > 0 else ZERO_BIN


def bin_middle(number: int) -> float:
    """The value in the (geometric) middle of a bin."""
    return 0.0 if number == ZERO_BIN else math.exp((number + 0.5) * BIN)


def _nonfinite(line: Mapping[str, Any]) -> int:
    return line.get("nonfinite", 0 if line.get("loss") is not None else line.get("steps", 1))


def _withheld(line: Mapping[str, Any]) -> dict[str, int]:
    """Withheld steps by cause, of a merged line or of that of a single step."""
    found = line.get("withheld") or {}
    return {found["cause"]: 1} if "cause" in found else found


def _merged_spread(early: Mapping[str, Any], late: Mapping[str, Any], counts: tuple[int, int]) -> dict[str, Any]:
    spreads = [_spread(line) for line in (early, late)]
    merged = {}
    for name in ("loss", *SPREAD):
        both = [spread[name] for spread in spreads if name in spread]
        if not both:
            continue
        merged[name] = {"least": min(one["least"] for one in both), "most": max(one["most"] for one in both)}
        if name not in SPREAD:
            continue
        bins: dict[str, int] = {}
        for one in both:
            for number, count in one["bins"].items():
                bins[number] = bins.get(number, 0) + count
        merged[name]["bins"] = dict(sorted(bins.items(), key=lambda item: int(item[0])))
    if "learning_rate" in spreads[0] and "learning_rate" in spreads[1]:
        apart = late["learning_rate"] - early["learning_rate"]
        squares = sum(spread["learning_rate"]["squares"] for spread in spreads)
        merged["learning_rate"]["squares"] = squares + apart**2 * counts[0] * counts[1] / sum(counts)
    elif "learning_rate" in merged:
        merged["learning_rate"]["squares"] = sum(
            spread["learning_rate"]["squares"] for spread in spreads if "learning_rate" in spread
        )
    return merged


def _spread(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A merged line's own, or that of a single step."""
    if "spread" in line:
        return line["spread"]
    values = {name: line[name] for name in ("loss", *SPREAD) if line.get(name) is not None}
    spread: dict[str, Any] = {name: {"least": value, "most": value} for name, value in values.items()}
    for name in SPREAD:
        if name in values:
            spread[name]["bins"] = {str(bin_of(values[name])): 1}
    if "learning_rate" in values:
        spread["learning_rate"]["squares"] = 0.0
    return spread


def _sum(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _mean(one: float | None, other: float | None, weight: int, other_weight: int) -> float | None:
    if one is None or other is None or not weight or not other_weight:
        return one if other is None or not other_weight else other
    return one + (other - one) * (other_weight / (weight + other_weight))
