"""Several processes that train one run together: their groups, the tables they share, the sums they agree on."""

from __future__ import annotations

from trainer.ranks.group import ALONE, Ranks, RanksLostError, SaveRanks, open_ranks, ranks_asked
from trainer.ranks.reduction import StepSums
from trainer.ranks.rows import RowsOfRank
from trainer.ranks.table import RowsAcrossRanks, ShardedEmbedding, held_rows, sharded_tables

__all__ = [
    "ALONE",
    "Ranks",
    "RanksLostError",
    "RowsAcrossRanks",
    "RowsOfRank",
    "SaveRanks",
    "ShardedEmbedding",
    "StepSums",
    "held_rows",
    "open_ranks",
    "ranks_asked",
    "sharded_tables",
]
