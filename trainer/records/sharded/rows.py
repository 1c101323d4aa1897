"""Which rows of a tensor are meant: those that a rank has, or wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.records.content import STATE_FILE
from trainer.records.sharded.group import SaveGroup


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of a tensor (rows, ...); none if they are equal."""

    start: int
    stop: int
    rows: int
    """Of the whole tensor."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= self.rows:
            raise ValueError(f"rows {self.start} to {self.stop} of {self.rows} are none of a tensor")


Take = Callable[[str, str, tuple[int, ...]], RowRange | None]
"""(file without suffix, tensor's name, whole shape) → the rows that are wanted, None for all of it."""


def same_on_all(file: str, name: str) -> bool:
    """Whether a tensor that is not in rows should be the same on all ranks: not the states of random generators, which
    depend on what each rank drew on its devices."""
    return not (file == STATE_FILE and name.startswith("random."))


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What of a checkpoint lies in rows on the ranks of a group, and what is the same on all."""

    group: SaveGroup
    rows: Mapping[tuple[str, str], RowRange]
    """(file without suffix, tensor's name) → the rows of the whole one that this rank's tensor holds."""
