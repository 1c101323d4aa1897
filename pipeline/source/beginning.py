"""Digests of how a log begins, by which one that is given again is known when the file it was is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from pipeline.schema import LogFormat
from pipeline.source.same import SHORTEST_BYTES, normalized
from pipeline.source.source import Source

LENGTHS = tuple(1 << power for power in range(10, 19))
"""Bytes, 1 KiB to 256 KiB, that are digested of every log that has so many."""
_DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """How a log begins: its rows as pipeline.source.same compares them, whatever it is packed in."""

    digests: Mapping[int, str]
    """Of its first so many bytes; of all of them too if it `is_whole`."""
    is_whole: bool
    """Whether it has no more than the longest of LENGTHS."""

    @property
    def length(self) -> int:
        """Bytes of the longest beginning that is digested."""
        return max(self.digests, default=0)

    def is_same(self, other: Beginning) -> bool:
        """Whether the two are all of one log."""
        return self.is_whole and other.is_whole and self.length == other.length and self.begins_alike(other)

    def begins_alike(self, other: Beginning) -> bool:
        """Whether the longest beginnings that are known of both are equal: 1 KiB at least, as a few rows may agree by
        chance, or all of both."""
        common = max(self.digests.keys() & other.digests.keys(), default=0)
        whole = self.is_whole and other.is_whole and self.length == other.length
        return (common >= SHORTEST_BYTES or (whole and common > 0)) and self.digests[common] == other.digests[common]

    def stored(self) -> dict[str, Any]:
        """As plain JSON values; `from_stored` gives it back."""
        return {"is_whole": self.is_whole, "digests": [[length, digest] for length, digest in self.digests.items()]}

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> Beginning:
        return cls(is_whole=values["is_whole"], digests=dict(values["digests"]))

    def usual(self) -> Beginning:
        """The same with the digests alone that are made of every log."""
        lengths = {*LENGTHS, self.length if self.is_whole else 0}
        return replace(self, digests={length: self.digests[length] for length in self.digests if length in lengths})


def read_beginning(source: Source, log_format: LogFormat, lengths: Collection[int] = ()) -> Beginning:
    """How a source other than standard input begins, with the digests of LENGTHS and of `lengths`.

    Raises: InputError if it cannot be read.
    """
    wanted = sorted({*LENGTHS, *(length for length in lengths if 0 < length <= LENGTHS[-1])})
    digest, read, digests = hashlib.sha256(), 0, {}
    with closing(normalized(source, log_format)) as chunks:
        for chunk in chunks:
            view = memoryview(chunk)
            while wanted and read + len(view) >= wanted[0]:
                length = wanted.pop(0)
                digest.update(view[: length - read])
                view, read = view[length - read :], length
                digests[length] = digest.hexdigest()[: 2 * _DIGEST_BYTES]
            digest.update(view)
            read += len(view)
            if not wanted and read > LENGTHS[-1]:
                return Beginning(digests=digests, is_whole=False)
    if read:
        digests[read] = digest.hexdigest()[: 2 * _DIGEST_BYTES]
    return Beginning(digests=digests, is_whole=True)
