"""Stored bytes, compressed or not, as one stream of decompressed bytes that knows when it is damaged."""

from __future__ import annotations

import io
import sys
import zlib
from typing import Any, BinaryIO

import zstandard
from isal import igzip, isal_zlib

from pipeline.errors import InputError, StorageError, cause_of

READ_BYTES = 1 << 20
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
"""What compressed files begin with."""
_DAMAGED: Any = (EOFError, igzip.BadGzipFile, isal_zlib.IsalError, zlib.error, zstandard.ZstdError)


class SourceStream:
    """Decompressed bytes of one source, read once from front to back; a context manager."""

    def __init__(self, raw: Any, address: str) -> None:
        self._address = address
        self._counted = _CountingReader(raw)
        buffered = io.BufferedReader(self._counted, READ_BYTES)
        magic = buffered.peek(4)[:4]
        self._stream: Any = buffered
        if magic.startswith(GZIP):
            self._stream = igzip.IGzipFile(fileobj=buffered, mode="rb")
        elif magic == ZSTD:
            self._stream = _ZstdReader(buffered)

    @property
    def stored_bytes(self) -> int:
        """How many bytes of the file as stored were read so far."""
        return self._counted.bytes

    def fill(self, view: memoryview) -> int:
        """Fill `view` from the stream; fewer bytes than it holds only at the end.

        Raises: InputError where the file is truncated or damaged; StorageError where reading fails.
        """
        filled = 0
        try:
            while filled < len(view):
                count = self._stream.readinto(view[filled:])
                if not count:
                    break
                filled += count
        except _DAMAGED as error:
            raise InputError(
                f"{self._address}: the compressed file is truncated or damaged ({error}); fetch it again"
            ) from None
        except OSError as error:
            raise StorageError(f"{self._address}: reading failed ({cause_of(error)}); check the disk or network") from (
                error
            )
        return filled

    def close(self) -> None:
        self._stream.close()
        self._counted.close()

    def __enter__(self) -> SourceStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _CountingReader(io.RawIOBase):
    """A raw reader that knows how many bytes went through it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._inner = inner
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._inner.readinto(buffer) or 0
        self.bytes += count
        return count

    def close(self) -> None:
        if not self.closed and self._inner is not sys.stdin.buffer:
            self._inner.close()
        super().close()


class _ZstdReader(io.RawIOBase):
    """Zstandard frames one after another; a stream that ends inside a frame raises EOFError (the library's own reader
    ends there in silence)."""

    def __init__(self, inner: BinaryIO) -> None:
        super().__init__()
        self._inner = inner
        self._frame: Any = None
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            data = self._inner.read(READ_BYTES // 8)
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._pending = memoryview(self._decompress(data))
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            parts.append(self._frame.decompress(data))
            if not self._frame.eof:
                break
            data = self._frame.unused_data
            self._frame = None
        return b"".join(parts)

    def close(self) -> None:
        self._inner.close()
        super().close()
