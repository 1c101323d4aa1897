"""Which rows of a table a rank holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RowsOfRank:
    """Rows rank, rank + ranks, … of a table of `rows`: row r is row r // ranks of rank r % ranks.

    So the rows that all ask for, which lie at the beginning of a table with small features, are on all ranks alike.
    """

    rows: int
    rank: int
    ranks: int

    @property
    def held(self) -> int:
        """Rows that this rank holds: ⌈rows/ranks⌉ or one less."""
        return self.before(self.rows)

    def before(self, row: int) -> int:
        """How many of this rank's rows come before `row` of the table."""
        return (row - self.rank + self.ranks - 1) // self.ranks

    def bounds(self) -> list[int]:
        """(ranks + 1,) where each rank's rows begin, and the last one's end, with the rows in the order of ranks."""
        least, ranks_with_more = divmod(self.rows, self.ranks)
        return [rank * least + min(rank, ranks_with_more) for rank in range(self.ranks + 1)]
