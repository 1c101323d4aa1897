"""Which rows of a tensor are meant: those that a rank has, or wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.records.content import STATE_FILE
from trainer.records.sharded.group import SaveGroup


@dataclass(frozen=True)
class RowRange:
    """Rows start, start + step, … before stop of a tensor (rows, ...); none if start is stop."""

    start: int
    stop: int
    rows: int
    """Of the whole tensor."""
    step: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= self.rows or self.step < 1:
            raise ValueError(f"rows {self} are none of a tensor")

    def __str__(self) -> str:
        steps = "" if self.step == 1 else f" in steps of {self.step}"
        return f"{self.start} to {self.stop}{steps} of {self.rows}"

    @property
    def numbers(self) -> range:
        """Those of the rows, in the whole tensor."""
        return range(self.start, self.stop, self.step)

    def common(self, other: RowRange) -> range:
        """The numbers of the rows that both have."""
        if (self.start - other.start) % math.gcd(self.step, other.step):
            return range(0)
        stop, others = min(self.stop, other.stop), other.numbers
        passed = max(0, -(-(other.start - self.start) // self.step))
        candidates = self.numbers[passed : passed + other.step]
        first = next((number for number in candidates if number in others), stop)
        return range(first, stop, math.lcm(self.step, other.step))

    def places(self, numbers: range) -> slice:
        """Where some of these rows, at least one, lie among them."""
        first, last = ((number - self.start) // self.step for number in (numbers[0], numbers[-1]))
        return slice(first, last + 1, numbers.step // self.step)


def all_rows(rows: int) -> RowRange:
    return RowRange(0, rows, rows)


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
