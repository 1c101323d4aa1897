"""The one Parquet dialect that shards are written in, both ways."""

from __future__ import annotations

from pipeline.parquet.decoder import Chunk, Encode, fill_column, read_chunks, take_column
from pipeline.parquet.writer import Compression, ParquetColumn, ParquetWriter

__all__ = [
    "Chunk",
    "Compression",
    "Encode",
    "ParquetColumn",
    "ParquetWriter",
    "fill_column",
    "read_chunks",
    "take_column",
]
