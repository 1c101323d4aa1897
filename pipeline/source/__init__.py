"""A log's bytes → blocks of whole lines, whatever the log is stored in."""

from __future__ import annotations

from pipeline.source.blocks import (
    Block,
    ByteRange,
    LineReader,
    Pieces,
    RangeFinder,
    count_lines,
    new_memory,
    range_blocks,
)
from pipeline.source.source import Source, find_sources

__all__ = [
    "Block",
    "ByteRange",
    "LineReader",
    "Pieces",
    "RangeFinder",
    "Source",
    "count_lines",
    "find_sources",
    "new_memory",
    "range_blocks",
]
