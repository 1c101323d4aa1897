"""Append-only JSON-lines files of a run that a checkpoint can cut back to where it stood."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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

    def sync(self) -> int:
        """Puts everything on disk and returns the file's length in bytes, for `cut`."""
        with self._named():
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

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


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, passing over a last line that was not written whole."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


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
