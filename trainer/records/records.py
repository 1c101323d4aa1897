"""Append-only JSON-lines files of a run that a checkpoint can cut back to where it stood."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from pipeline.errors import StorageError

Line = TypeVar("Line")


class Records:
    """One JSON object a line; written through a buffer, cut back exactly by byte offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")
        self.cut(_whole_lines(path))

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one line. Numbers that are not finite become null, as JSON has none."""
        with self._named():
            self._file.write(json.dumps(_finite(record)).encode() + b"\n")

    def flush(self) -> None:
        """Hands everything appended to the operating system, so that other processes see it."""
        with self._named():
            self._file.flush()

    def length(self) -> int:
        """The file's length in bytes, everything appended included, for `cut`; on disk only after the next `sync`."""
        self.flush()
        return self._file.tell()

    def sync(self) -> None:
        """Puts on disk what was flushed; in any thread, while another one appends."""
        with self._named():
            os.fsync(self._file.fileno())

    def cut(self, length: int) -> None:
        """Forgets everything after the first `length` bytes: lines of steps that will be run again."""
        self.flush()
        os.ftruncate(self._file.fileno(), min(length, os.fstat(self._file.fileno()).st_size))
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        with self._named():
            self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """An error of the system says which file it is about; those of writing do not by themselves."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise


@overload
def read_records(path: Path, *, damaged: Callable[[int], None] | None = None) -> Iterator[dict[str, Any]]: ...
@overload
def read_records(path: Path, kind: type[Line], *, damaged: Callable[[int], None] | None = None) -> Iterator[Line]: ...
def read_records(path: Path, kind: Any = dict, *, damaged: Callable[[int], None] | None = None) -> Iterator[Any]:
    """The objects of a JSON-lines file as `kind`, one a line, in order; nothing if there is no such file.

    A line that is not such an object is damaged. Every one of them is passed over and told to `damaged` by its number,
    counted from 1. Without `damaged` only a last line without its end, which a writer may still be at or may have been
    killed at, is passed over.

    Raises: StorageError for any other damaged line, if there is no `damaged` to tell.
    """
    if not path.is_file():
        return
    decode = msgspec.json.Decoder(kind).decode
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                if not line.strip():
                    continue
                if damaged is not None:
                    damaged(number)
                elif line.endswith(b"\n"):
                    raise StorageError(
                        f"{path}: line {number} is damaged; restore the file from a backup, or delete that line"
                    ) from None
                continue
            yield record


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _whole_lines(path: Path) -> int:
    """Bytes up to the last line end: a process that was killed may leave a line begun."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
