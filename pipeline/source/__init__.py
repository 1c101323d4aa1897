"""A log's bytes → blocks of whole lines, whatever the log is stored in.

found = find_sources(["log"])  # a folder's days in natural order; found.notices: what was left out
check_sources(found.sources, log_format)  # no empty file, no log twice
with LineReader(found.sources[0], log_format) as reader:
    blocks = list(reader)
"""

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
from pipeline.source.find import Found, find_sources
from pipeline.source.same import check_sources
from pipeline.source.source import Source

__all__ = [
    "Block",
    "ByteRange",
    "Found",
    "LineReader",
    "Pieces",
    "RangeFinder",
    "Source",
    "check_sources",
    "count_lines",
    "find_sources",
    "new_memory",
    "range_blocks",
]
