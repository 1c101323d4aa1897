"""Shards → rows in the order of an epoch → pairs of batches (B1, B2)."""

from __future__ import annotations

from pipeline.rows.buffers import BufferPool
from pipeline.rows.groups import GroupReader
from pipeline.rows.order import Order, Shuffle, StreamPosition
from pipeline.rows.pairs import BatchPair, Gap, OncePerBatch, Pairing, PairPlan, PairStream
from pipeline.rows.reader import OnDamage, RowBatch, RowReader

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
