"""A buffer of whole lines, as it is filled and as it is parsed: its limits."""

from __future__ import annotations

PADDING_BYTES = 16
"""What a buffer must hold beyond its last line, for reads of eight bytes at a time."""
MAX_LINE_BYTES = 1 << 20
"""A longer run of bytes without a line end is taken for something other than a log."""
