"""A small generated log whose rows have weights, and what it should come to, straight from its lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("click", "weight", "age", "shop", "item")
FORMAT = """
columns = ["click", "weight", "age", "shop", "item"]
label = "click"
weight = "weight"
dense = ["age"]
sparse = ["shop", "item"]
bucket_sizes = [50, 5000]
delimiter = ","
header = true
hexadecimal = false
missing = []
"""
UNWEIGHTED_FORMAT = FORMAT.replace('weight = "weight"\n', "")


@dataclass(frozen=True, kw_only=True)
class WeightedLog:
    """The rows of a log, in order."""

    label: NDArray[np.int64]
    weight: NDArray[np.float64]
    lines: list[str]

    def write(self, path: Path, *, without: tuple[str, ...] = (), rows: slice = slice(None)) -> Path:
        """As a file, perhaps without some columns."""
        kept = [place for place, name in enumerate(COLUMNS) if name not in without]
        lines = [",".join(line.split(",")[place] for place in kept) for line in (",".join(COLUMNS), *self.lines[rows])]
        path.write_text("\n".join(lines) + "\n")
        return path


def weighted_log(rows: int = 6000, seed: int = 0) -> WeightedLog:
    """Shops are clicked at rates from 0.05 to 0.6; the rows of a click weigh about four times as much."""
    rng = np.random.default_rng(seed)
    shop, item, age = rng.integers(12, size=rows), rng.integers(900, size=rows), rng.integers(90, size=rows)
    label = (rng.random(rows) < 0.05 + 0.05 * shop).astype(np.int64)
    weight = np.round(rng.lognormal(0.0, 0.7, rows) * np.where(label == 1, 4.0, 1.0) + 0.01, 4)
    lines = [f"{y},{w:.4f},{a},shop{s},item{i}" for y, w, a, s, i in zip(label, weight, age, shop, item, strict=True)]
    return WeightedLog(label=label, weight=weight, lines=lines)
