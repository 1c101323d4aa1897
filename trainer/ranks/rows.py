"""Which rows of a table a rank holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RowsOfRank:
    """Rows [start, stop) of a table of `rows`: ⌈rows/ranks⌉ each, fewer or none at the end."""

    rows: int
    rank: int
    ranks: int

    @property
    def most(self) -> int:
        """Rows that any rank holds at most."""
        return -(-self.rows // self.ranks)

    @property
    def start(self) -> int:
        return min(self.rank * self.most, self.rows)

    @property
    def stop(self) -> int:
        return min(self.start + self.most, self.rows)

    @property
    def held(self) -> int:
        """Rows that this rank holds."""
        return self.stop - self.start

    def bounds(self) -> list[int]:
        """Where each rank's rows end."""
        return [min((rank + 1) * self.most, self.rows) for rank in range(self.ranks)]
