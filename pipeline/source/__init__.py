"""A log's bytes → blocks of whole lines, whatever the log is stored in.

>>> found = find_sources(["log"])
>>> [source.label for source in found.sources]
['day_2.tsv', 'day_10.tsv']
>>> check_sources(found.sources, log_format)
>>> with LineReader(found.sources[0], log_format) as reader:
...     sum(bytes(block.buffer[block.start : block.stop]).count(b"\\n") for block in reader)
30
"""

from __future__ import annotations

from pipeline.source.beginning import Beginning, read_beginning
from pipeline.source.blocks import (
    Block,
    ByteRange,
    LineReader,
    Pieces,
    RangeFinder,
    check_header,
    count_lines,
    new_memory,
    range_blocks,
)
from pipeline.source.find import Found, find_sources
from pipeline.source.newlines import after_newlines
from pipeline.source.same import check_sources
from pipeline.source.source import Source, describe_source

__all__ = [
    "Beginning",
    "Block",
    "ByteRange",
    "Found",
    "LineReader",
    "Pieces",
    "RangeFinder",
    "Source",
    "after_newlines",
    "check_header",
    "check_sources",
    "count_lines",
    "describe_source",
    "find_sources",
    "new_memory",
    "range_blocks",
    "read_beginning",
]
