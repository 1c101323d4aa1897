"""The one Parquet dialect that shards are written in, both ways."""

from __future__ import annotations

from pipeline.parquet.decoder import Encode, fill_column, read_chunks
from pipeline.parquet.writer import Compression, ParquetColumn, ParquetWriter

__all__ = [
    "Compression",
    "Encode",
    "ParquetColumn",
    "ParquetWriter",
    "fill_column",
    "read_chunks",
]
