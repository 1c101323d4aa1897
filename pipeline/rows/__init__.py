"""Shards → rows in the order of an epoch → pairs of batches (B1, B2)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.rows.choices import OnDamage, Pairing, Shuffle

if TYPE_CHECKING:
    from pipeline.rows.buffers import BufferPool
    from pipeline.rows.groups import GroupReader
    from pipeline.rows.order import Order, StreamPosition
    from pipeline.rows.pairs import BatchPair, Gap, OncePerBatch, PairPlan, PairStream
    from pipeline.rows.reader import RowBatch, RowReader

__all__ = [
    "BatchPair",
    "BufferPool",
    "Gap",
    "GroupReader",
    "OnDamage",
    "OncePerBatch",
    "Order",
    "PairPlan",
    "PairStream",
    "Pairing",
    "RowBatch",
    "RowReader",
    "Shuffle",
    "StreamPosition",
]

_FILES = {
    "BatchPair": "pairs",
    "BufferPool": "buffers",
    "Gap": "pairs",
    "GroupReader": "groups",
    "OncePerBatch": "pairs",
    "Order": "order",
    "PairPlan": "pairs",
    "PairStream": "pairs",
    "RowBatch": "reader",
    "RowReader": "reader",
    "StreamPosition": "order",
}


def __getattr__(name: str) -> Any:
    """What needs compiled code, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
