"""What sources are packed in: told by their first bytes, and unpacked member by member."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Literal

import zstandard
from isal import igzip, isal_zlib

Packing = Literal["gzip", "zstd", "bzip2", "xz"]
MAGIC_BYTES = 16
"""How many first bytes tell the packing."""
ZSTD_WINDOW_BYTES = 1 << 31
"""The largest window that the library decodes; a frame takes that much memory while it is read."""
_MEMBER_BYTES = 1 << 15


_GZIP_ERRORS: Any = (EOFError, igzip.BadGzipFile, isal_zlib.IsalError, zlib.error)


class DamagedError(Exception):
    """A packed stream that is truncated or damaged, and why."""


class UnreadableError(Exception):
    """A packed stream that is whole and needs more than there is: what, and what to do."""


def packing_of(beginning: bytes) -> Packing | None:
    """What a file that begins so is packed in; None for plain bytes."""
    if beginning.startswith(b"\x1f\x8b"):
        return "gzip"
    if beginning.startswith(b"\x28\xb5\x2f\xfd") or (
        beginning[1:4] == b"\x2a\x4d\x18" and beginning[0] & 0xF0 == 0x50  # a skippable frame, as pzstd begins with
    ):
        return "zstd"
    if beginning[:3] == b"BZh" and beginning[3:4] in b"123456789" and beginning[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    if beginning.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        return "xz"
    return None


_BZIP2_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")


def unpacked(stored: BinaryIO, packing: Packing | None) -> Any:
    """A raw reader of the plain bytes; reading it raises DamagedError and UnreadableError."""
    if packing is None:
        return stored
    if packing == "gzip":
        return _GzipReader(stored)
    make = {"zstd": _new_zstd, "bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}[packing]
    return _MemberReader(stored, make, padded=packing == "xz")


def _new_zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()


class _GzipReader(io.RawIOBase):
    """Gzip members one after another."""

    def __init__(self, stored: BinaryIO) -> None:
        super().__init__()
        self._file = igzip.IGzipFile(fileobj=stored, mode="rb")
        self._stored = stored

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer)
        except _GZIP_ERRORS as error:
            raise DamagedError(str(error)) from None

    def close(self) -> None:
        self._file.close()
        self._stored.close()
        super().close()


class _MemberReader(io.RawIOBase):
    """Frames or members one after another; a stream that ends inside one raises (the libraries' own readers end there,
    or at a damaged member, in silence)."""

    def __init__(self, stored: BinaryIO, make: Callable[[], Any], *, padded: bool) -> None:
        super().__init__()
        self._stored, self._make, self._padded = stored, make, padded
        self._member: Any = None
        self._beginning = b""
        """Of the member, for what its header says."""
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            data = self._stored.read(_MEMBER_BYTES)
            if not data:
                if self._member is not None:
                    raise DamagedError("it ends within a frame")
                return 0
            try:
                self._pending = memoryview(self._unpack(data))
            except (OSError, lzma.LZMAError, zstandard.ZstdError, MemoryError) as error:
                if demand := _zstd_demand(self._beginning):
                    raise UnreadableError(demand) from None
                raise DamagedError(str(error) or "out of memory") from None
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _unpack(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._member is None:
                data = data.lstrip(b"\0") if self._padded else data
                if not data:
                    break
                self._member, self._beginning = self._make(), b""
            self._beginning += data[: 18 - len(self._beginning)]
            parts.append(self._member.decompress(data))
            if not self._member.eof:
                break
            data = self._member.unused_data
            self._member = None
        return b"".join(parts)

    def close(self) -> None:
        self._stored.close()
        super().close()


def _zstd_demand(beginning: bytes) -> str | None:
    """What a zstd frame needs that it cannot have, from its header (RFC 8878, 3.1.1.1)."""
    if not beginning.startswith(b"\x28\xb5\x2f\xfd") or len(beginning) < 18:
        return None
    descriptor, one_segment = beginning[4], beginning[4] & 0x20
    at = 5 if one_segment else 6
    dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    if dictionary := int.from_bytes(beginning[at : at + dictionary_bytes], "little"):
        return f"needs the dictionary {dictionary} that it was compressed with; decompress it with that first"
    if one_segment:
        size_bytes = (1, 2, 4, 8)[descriptor >> 6]
        window = int.from_bytes(beginning[at + dictionary_bytes :][:size_bytes], "little")
    else:
        base = 1 << (10 + (beginning[5] >> 3))
        window = base + base // 8 * (beginning[5] & 7)
    if window > ZSTD_WINDOW_BYTES:
        return f"needs a window of {window:,} bytes, and {ZSTD_WINDOW_BYTES:,} are decoded; compress it with less"
    return None
