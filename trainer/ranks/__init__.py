"""Several processes that train one run together: their groups, the tables they share, the sums they agree on."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.ranks.config import RanksConfig, ranks_asked

if TYPE_CHECKING:
    from trainer.ranks.group import (
        ALONE,
        OtherRowsError,
        RankRefusedError,
        Ranks,
        RanksLostError,
        SaveRanks,
        open_ranks,
    )
    from trainer.ranks.reduction import StepSums
    from trainer.ranks.rows import RowsOfRank
    from trainer.ranks.table import RowsAcrossRanks, ShardedEmbedding, held_rows, sharded_tables

__all__ = [
    "ALONE",
    "OtherRowsError",
    "RankRefusedError",
    "Ranks",
    "RanksConfig",
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

_FILES = {
    "ALONE": "group",
    "OtherRowsError": "group",
    "Ranks": "group",
    "RankRefusedError": "group",
    "RanksLostError": "group",
    "RowsAcrossRanks": "table",
    "RowsOfRank": "rows",
    "SaveRanks": "group",
    "ShardedEmbedding": "table",
    "StepSums": "reduction",
    "held_rows": "table",
    "open_ranks": "group",
    "sharded_tables": "table",
}


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
