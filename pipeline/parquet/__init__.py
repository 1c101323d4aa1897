"""The one Parquet dialect that shards are written in, both ways."""

from __future__ import annotations

from pipeline.parquet.decoder import Encode, fill_column, read_chunks
from pipeline.parquet.writer import Column, Compression, ParquetWriter

__all__ = [
    "Column",
    "Compression",
    "Encode",
    "ParquetWriter",
    "fill_column",
    "read_chunks",
]
