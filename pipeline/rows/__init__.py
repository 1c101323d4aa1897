"""Shards → rows in the order of an epoch → pairs of batches (B1, B2).

Which rows come when is `Order`'s to say, which of them make a pair `PairSpans`'s; `RowReader` reads ahead of both.

    >>> order = Order([shard.row_groups for shard in shards], seed=0, shuffle="rows", window_groups=16)
    >>> reader = RowReader(GroupReader(files, shards, log_format, compression="lz4"), order, log_format, threads=2)
    >>> spans = PairSpans(rows=order.rows, batch_rows=20, probe_rows=10)
    >>> pair = next(HostPairs(reader, spans, RowPosition(epoch=3, row=40)))
    >>> pair.b1.rows, pair.b2.rows, pair.position
    (10, 20, RowPosition(epoch=3, row=60))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.rows.choices import Moduli, OnDamage, Pairing, Shuffle

if TYPE_CHECKING:
    from pipeline.rows.columns import encoded_columns
    from pipeline.rows.generations import GenerationPairs
    from pipeline.rows.groups import GroupReader
    from pipeline.rows.growing import GrowingLog
    from pipeline.rows.held_out import HeldOutProbes, probing_order
    from pipeline.rows.order import Order, RankShare, RowPosition, united
    from pipeline.rows.pairs import BatchPair, Gap, HostPairs, OncePerBatch, PairSpans
    from pipeline.rows.reader import RowBatch, RowReader
    from pipeline.rows.selection import RowSelection, hold_out

__all__ = [
    "BatchPair",
    "Gap",
    "GenerationPairs",
    "GroupReader",
    "GrowingLog",
    "HeldOutProbes",
    "HostPairs",
    "Moduli",
    "OnDamage",
    "OncePerBatch",
    "Order",
    "PairSpans",
    "Pairing",
    "RankShare",
    "RowBatch",
    "RowPosition",
    "RowReader",
    "RowSelection",
    "Shuffle",
    "encoded_columns",
    "hold_out",
    "probing_order",
    "united",
]

_FILES = {
    "BatchPair": "pairs",
    "Gap": "pairs",
    "GenerationPairs": "generations",
    "encoded_columns": "columns",
    "GroupReader": "groups",
    "GrowingLog": "growing",
    "HeldOutProbes": "held_out",
    "probing_order": "held_out",
    "RowSelection": "selection",
    "hold_out": "selection",
    "OncePerBatch": "pairs",
    "Order": "order",
    "PairSpans": "pairs",
    "HostPairs": "pairs",
    "RowBatch": "reader",
    "RowReader": "reader",
    "RankShare": "order",
    "united": "order",
    "RowPosition": "order",
}


def __getattr__(name: str) -> Any:
    """What needs compiled code, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
