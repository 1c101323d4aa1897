"""Reads of storage that may hang or fail for a moment: waited for as long as somebody wants to, and tried again.

>>> pool = ReaderThreads(2, name="reader")
>>> awaited(pool.submit(pow, 2, 10), lambda: False)
1024
>>> pool.close()
True
"""

from __future__ import annotations

from pipeline.reads.retries import ReadRetries, is_transient
from pipeline.reads.threads import CLOSE_SECONDS, ReaderThreads
from pipeline.reads.waiting import POLL_SECONDS, awaited, never

__all__ = [
    "CLOSE_SECONDS",
    "POLL_SECONDS",
    "ReadRetries",
    "ReaderThreads",
    "awaited",
    "is_transient",
    "never",
]
