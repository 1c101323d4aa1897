"""Taking files out of the operating system's page cache, and finding out whether that works where they lie."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

PROBE_BYTES = 1 << 20
LEAST_PAUSE_SECONDS = 0.05
PAUSE_FACTOR = 20
"""A sweep over the files is followed by a pause so many times as long, which leaves the cores to the run."""


def drop_files(paths: Iterable[Path]) -> None:
    """Drops what the page cache holds of each file, except pages that are not written back yet or are in use.

    Raises: OSError for a file that cannot be opened.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            drop_range(descriptor, 0, 0)
        finally:
            os.close(descriptor)


@contextmanager
def kept_cold(paths: Sequence[Path]) -> Iterator[None]:
    """Drops the files now and, on a thread of its own, over and over, so that every read within comes from the disk.

    Without it the second epoch over a small log would find in memory what the first one read.
    Raises: OSError for a file that cannot be opened, at the start only.
    """
    drop_files(paths)
    ended = threading.Event()

    def sweep() -> None:
        pause = 0.0
        while not ended.wait(max(pause, LEAST_PAUSE_SECONDS)):
            start = time.perf_counter()
            with suppress(OSError):  # the reader says what is wrong with a file, and where
                drop_files(paths)
            pause = PAUSE_FACTOR * (time.perf_counter() - start)

    thread = threading.Thread(target=sweep, name="alphastream-cold", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def drop_range(descriptor: int, offset: int, length: int) -> None:
    """Drops `length` bytes of an open file from `offset` on; 0 bytes are all to its end. Whole pages only."""
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def why_not_dropped(path: Path) -> str | None:
    """Why files like `path` cannot be taken out of the page cache, or None if a look at its first pages showed that
    they can.

    Raises: OSError for a file that cannot be read.
    """
    if not hasattr(os, "posix_fadvise"):
        return "this platform has no posix_fadvise"
    with path.open("rb") as file:
        if not file.read(PROBE_BYTES):
            return None
    drop_files([path])
    if cached_share(path) > 0.5:
        return f"{path} stays in memory: its file system lies there, or keeps a cache of its own"
    return None


def cached_share(path: Path) -> float:
    """Share of the pages of the first MB of a file that are in memory, 0 if the system does not tell (mincore)."""
    memory = np.memmap(path, np.uint8, "r")[:PROBE_BYTES]
    pages = np.zeros(-(-len(memory) // mmap.PAGESIZE), np.uint8)
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    failed = mincore(
        ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(len(memory)), ctypes.c_void_p(pages.ctypes.data)
    )
    return 0.0 if failed else float((pages & 1).mean())
