"""The `[study.targets]` section: losses that are to be reached, and how soon others reached them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

TargetSplit = Literal["validation", "test"]
SPLITS: tuple[TargetSplit, ...] = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """One `[[study.targets.published]]`: how soon somebody else reached a target, to stand beside an arm of ours."""

    arm: str
    """The arm that does the same."""
    machine: str
    """Where it ran."""
    seconds: float
    """Seconds of training until the target was reached, the median of their runs."""
    split: TargetSplit = "validation"
    """Whose target."""
    rows_per_second: tuple[float, float] | None = None
    """Lowest and highest rows/s there."""
    batch_rows: int | None = None
    """Rows of a step there, from which and the rows/s the steps follow."""

    @property
    def steps(self) -> tuple[float, float] | None:
        """Least and most steps until then; None if what they follow from is not given."""
        if self.rows_per_second is None or self.batch_rows is None:
            return None
        low, high = (self.seconds * speed / self.batch_rows for speed in self.rows_per_second)
        return low, high

    def beside(self, other: PublishedConfig) -> bool:
        """Whether both are of one machine and one target, so that their times can be compared."""
        return (self.machine, self.split) == (other.machine, other.split)

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"study.targets.published.seconds is {self.seconds}; give a positive number")
        if self.rows_per_second is not None and not 0 < self.rows_per_second[0] <= self.rows_per_second[1] < math.inf:
            raise ValueError(
                f"study.targets.published.rows_per_second is {list(self.rows_per_second)}; give the lowest and the "
                "highest, both positive"
            )
        if self.batch_rows is not None and self.batch_rows < 1:
            raise ValueError(f"study.targets.published.batch_rows is {self.batch_rows}; give at least 1")


@dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """The `[study.targets]` section: either losses, or an arm whose own losses they are."""

    baseline: str | None = None
    """The arm that sets the targets: of the runs of its best cell, the middle best validation loss and the middle test
    loss there, so that at least half of them reach each. A target is reached where a loss is no higher."""
    validation: float | None = None
    """Reached where an evaluation's validation loss is below it."""
    test: float | None = None
    """Likewise, of the test loss."""
    published: tuple[PublishedConfig, ...] = ()
    """Times of others, the arm to compare with first."""

    def __post_init__(self) -> None:
        given = {split: value for split in SPLITS if (value := getattr(self, split)) is not None}
        for split, value in given.items():
            if not 0 < value < math.inf:
                raise ValueError(f"study.targets.{split} is {value}; give a positive loss or leave it out")
        if (self.baseline is None) == (not given):
            raise ValueError(
                "study.targets needs either the losses to reach (validation, test) or the arm that sets them (baseline)"
            )

    @property
    def splits(self) -> tuple[TargetSplit, ...]:
        """Those with a target."""
        return SPLITS if self.baseline else tuple(split for split in SPLITS if getattr(self, split) is not None)

    def refuse_arms(self, names: Collection[str]) -> None:
        """Raises ValueError for an arm that the study does not have."""
        named = {"baseline": self.baseline} | {f"published {one.machine}": one.arm for one in self.published}
        for key, arm in named.items():
            if arm is not None and arm not in names:
                raise ValueError(f"study.targets.{key} names arm {arm!r}; the study has {', '.join(names)}")

    def refuse_unseen(self, evaluated: Collection[str]) -> None:
        """Raises ValueError for a target of a split that is not `evaluated`."""
        for split in self.splits:
            if split not in evaluated:
                raise ValueError(f"eval.splits leaves out {split}, which study.targets has a target for; add it")
