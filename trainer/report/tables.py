"""What a table of the report is, and those of a run on several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.records import RunHistory


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of the report; numbers stay numbers until they are shown."""

    stem: str
    """File name of its CSV, without the suffix."""
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


def rank_tables(log: RunHistory) -> list[Table]:
    """Time by phase over ranks, longest first, and bytes by purpose; none of a run on one rank."""
    times = log.ranks
    if times is None:
        return []
    names = sorted(times.mean, key=lambda name: -times.mean[name])
    rows = [
        (name, times.minimum[name], times.mean[name], times.maximum[name], times.of_slowest[name]) for name in names
    ]
    seconds = Table(
        stem="ranks",
        title=f"Seconds by phase over {times.ranks} ranks, without the first step; rank {times.slowest} is the slowest",
        columns=("phase", "minimum", "mean", "maximum", "slowest_rank"),
        rows=rows,
    )
    steps = max(times.steps, 1)
    sent = Table(
        stem="sent",
        title="What all ranks together sent to one another over the same stretch",
        columns=("purpose", "bytes", "bytes_per_step"),
        rows=[(name, size, size / steps) for name, size in log.sent_bytes.items()],
    )
    return [seconds, sent]
