"""The bytes of a row group, read from its shard and compared with what the manifest lists."""

from __future__ import annotations

import os
import tempfile
from io import FileIO

import numpy as np
import pyarrow as pa
from isal import isal_zlib
from numpy.typing import NDArray

from pipeline.errors import StorageError
from pipeline.parquet import Compression
from pipeline.shards.manifest import Shard

_MAGIC_BYTES = 4


def codec_of(compression: Compression) -> pa.Codec | None:
    """What decompresses the pages of a shard; not to be shared between threads."""
    return None if compression == "none" else pa.Codec({"lz4": "lz4_raw", "zstd": "zstd"}[compression])


def row_group_place(shard: Shard, group: int) -> tuple[int, int]:
    """Where a row group begins in its shard, and what it takes; both in bytes."""
    return _MAGIC_BYTES + sum(shard.row_group_bytes[:group]), shard.row_group_bytes[group]


def file_in_memory(content: bytes, *, offset: int, size: int) -> FileIO:
    """A file of `size` bytes that has `content` at `offset` and nothing else, on no disk where the system can do so."""
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("row-group"), "r+b", 0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (for whoever asked to close)
    file.truncate(size)
    file.seek(offset)
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
    return file


def read_row_group(file: FileIO, shard: Shard, group: int, raw: NDArray[np.uint8]) -> None:
    """Fills `raw` (row_group_bytes[group],) with a row group, and makes sure that it is the one that was written.

    A file of the same size in place of the shard, or another row group in place of this one, differs in its CRC-32.
    The manifests of earlier versions list none; then only `alphastream verify` notices.
    Raises: StorageError if the file has another size or the row group is another; OSError if reading fails.
    """
    size = os.fstat(file.fileno()).st_size
    if size != shard.bytes:
        raise StorageError(f"it has {size} bytes instead of {shard.bytes}")
    offset, _ = row_group_place(shard, group)
    done = 0
    while done < len(raw):
        count = os.preadv(file.fileno(), [raw[done:].data], offset + done)
        if count == 0:
            raise StorageError("it became shorter while it was read")
        done += count
    if shard.row_group_crc32 and isal_zlib.crc32(raw.data) != shard.row_group_crc32[group]:
        raise StorageError("it differs from what the manifest says")
