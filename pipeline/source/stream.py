"""Stored bytes, packed or not, as one stream of plain bytes that knows when it is damaged or no text."""

from __future__ import annotations

import io
import sys
from typing import Any

from pipeline.errors import InputError, StorageError, cause_of
from pipeline.source.kinds import HEAD_BYTES, UTF8_BOM, foreign_kind
from pipeline.source.packing import MAGIC_BYTES, DamagedError, UnreadableError, packing_of, unpacked

READ_BYTES = 1 << 20


class SourceStream:
    """Unpacked bytes of one source without a byte order mark, read once from front to back; a context manager."""

    def __init__(self, raw: Any, address: str) -> None:
        self._address = address
        self._counted = _CountingReader(raw)
        self._buffered = io.BufferedReader(self._counted, READ_BYTES)
        self._unpacked: Any = None
        self._head = memoryview(b"")
        """Read to see what the bytes are, and not yet given out."""

    @property
    def stored_bytes(self) -> int:
        """How many bytes of the file as stored were read so far."""
        return self._counted.bytes

    def fill(self, view: memoryview) -> int:
        """Fill `view` from the stream; fewer bytes than it holds only at the end.

        Raises: InputError if the file is truncated, damaged, needs too much or is not delimited text; StorageError
        if reading fails.
        """
        try:
            if self._unpacked is None:
                self._begin()
            count = min(len(view), len(self._head))
            view[:count] = self._head[:count]
            self._head = self._head[count:]
            return count + self._fill(view[count:])
        except DamagedError as error:
            raise InputError(
                f"{self._address}: the compressed file is truncated or damaged ({error}); fetch it again"
            ) from None
        except UnreadableError as error:
            raise InputError(f"{self._address} {error}") from None
        except OSError as error:
            raise StorageError(f"{self._address}: reading failed ({cause_of(error)}); check the disk or network") from (
                error
            )

    def _begin(self) -> None:
        """Find out what the bytes are. Raises: InputError for what is not delimited text."""
        self._unpacked = unpacked(self._buffered, packing_of(self._buffered.peek(MAGIC_BYTES)[:MAGIC_BYTES]))  # pyright: ignore[reportArgumentType]
        memory = bytearray(HEAD_BYTES)
        head = bytes(memory[: self._fill(memoryview(memory))])
        if kind := foreign_kind(head):
            raise InputError(f"{self._address} {kind}")
        self._head = memoryview(head.removeprefix(UTF8_BOM))

    def _fill(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            count = self._unpacked.readinto(view[filled:])
            if not count:
                break
            filled += count
        return filled

    def close(self) -> None:
        if self._unpacked is not None:
            self._unpacked.close()
        self._buffered.close()
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
        if not self.closed and (sys.stdin is None or self._inner is not sys.stdin.buffer):
            self._inner.close()
        super().close()
