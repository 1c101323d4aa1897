"""A log's lines → rows as the model takes them, in their order, with a place for those that cannot be read."""

from __future__ import annotations

from pipeline.lines.reader import LineBatch, RejectedLine, RejectsSink, read_lines

__all__ = ["LineBatch", "RejectedLine", "RejectsSink", "read_lines"]
