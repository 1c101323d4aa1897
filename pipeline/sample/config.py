"""What a sample is to hold; importing it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Writes Criteo-shaped click logs whose best possible loss is known."""

    out: Path
    """Folder to write the days to; made if it is missing."""
    rows: int = 200_000
    """Lines in all, spread evenly over the days."""
    days: int = 1
    """Files to write: day_0.tsv, day_1.tsv, ..."""
    first_day: int = 0
    """Number of the first of them: later days of the same log, to be appended. A day has the same rows whatever other
    days are written, if it has as many."""
    seed: int = 0
    """Seed of the model and of every row."""

    def __post_init__(self) -> None:
        if self.days < 1:
            raise InputError(f"days = {self.days}; give at least 1")
        if self.first_day < 0:
            raise InputError(f"first_day = {self.first_day}; give 0 or more")
        if self.rows < self.days:
            raise InputError(f"rows = {self.rows} over {self.days} days; give at least one a day")
        if self.seed < 0:
            raise InputError(f"seed = {self.seed}; give 0 or more")
