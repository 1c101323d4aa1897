"""Standard input, output and error as a program may find them: closed, full, broken, or of a narrow encoding."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

PATIENCE_SECONDS = 1.0
"""So long a line waits for a reader that has stopped reading; those after it don't, until it reads again."""
AT_ONCE_BYTES = 4096
"""A pipe that can take anything takes so much without blocking (PIPE_BUF on Linux)."""
UNENCODABLE = "alphastream.unencodable"
"""How the streams write what their encoding lacks: a file name's odd bytes as they are, else a backslash escape."""


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in text):
        return bytes(ord(character) - 0xDC00 for character in text), error.end
    return text.encode("ascii", "backslashreplace"), error.end


class OutputError(OSError):
    """Standard output cannot be written; what a command did until then is done."""


class Results(io.TextIOWrapper):
    """Standard output that says so if it fails, once: what is written to it afterwards is lost.

    Raises: BrokenPipeError if nobody reads any more, OutputError otherwise.
    """

    def write(self, text: str, /) -> int:
        with self._failures():
            return super().write(text)

    def flush(self) -> None:
        with self._failures():
            super().flush()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            discard(self.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(error.errno, error.strerror) from error


class LossyOutput:
    """Writes to a file descriptor and neither fails nor blocks for long, whatever has become of its other end.

    What a full disk, a pipe without reader, a terminal that is gone or a reader that has stopped reading does not take
    is dropped, line by line, and counted. The first line that is taken again stands below how many were not.
    """

    def __init__(self, number: int) -> None:
        self.lost_lines = 0
        """Lines dropped so far."""
        self._number = number
        self._lock = threading.RLock()  # a signal's handler may write as well
        self._untold = 0
        self._torn = self._blocked = False
        if os.isatty(number):
            # A terminal blocks in the middle of a write. Opened anew it needn't, and who shares it sees no difference.
            with suppress(OSError):
                self._number = os.open(os.ttyname(number), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)

    def write(self, data: bytes) -> None:
        """Writes `data`, or drops what of it is not taken."""
        with self._lock:
            told = f"({self._untold:,} lines before this one could not be written)\n" if self._untold else ""
            before = (("\n" if self._torn else "") + told).encode()
            taken = self._taken(before + data)
            if taken:
                self._torn = taken < len(before + data) and (before + data)[taken - 1 : taken] != b"\n"
            lost = data[max(taken - len(before), 0) :].count(b"\n")
            self._untold = lost + (self._untold if taken < len(before) else 0)
            self.lost_lines += lost

    def _taken(self, data: bytes) -> int:
        """Writes as much as is taken; gives how many bytes that were."""
        done = 0
        while done < len(data):
            try:
                if not self._ready():
                    break
                done += os.write(self._number, data[done : done + AT_ONCE_BYTES])
            except OSError:
                break
        return done

    def _ready(self) -> bool:
        waiting = select.poll()
        waiting.register(self._number, select.POLLOUT)
        self._blocked = not waiting.poll(0 if self._blocked else round(1000 * PATIENCE_SECONDS))
        return not self._blocked


class Messages(io.TextIOWrapper):
    """Standard error that never fails: what it cannot write is lost and counted, and the work goes on."""

    def __init__(self, number: int, *, encoding: str, errors: str) -> None:
        super().__init__(_binary(number, "wb", buffered=False), encoding=encoding, errors=errors, write_through=True)
        self._output = LossyOutput(number)

    @property
    def lost_lines(self) -> int:
        """Lines that could not be written so far."""
        return self._output.lost_lines

    def write(self, text: str, /) -> int:
        self._output.write(text.encode(self.encoding, self.errors or "strict"))
        return len(text)


def occupy() -> None:
    """Opens those of the three streams that are closed, on nothing.

    To be called before anything else is opened: a file would take a closed stream's number, and be written to.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # takes the lowest free number; for workers too, whose first file would take it otherwise
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def prepare() -> None:
    """Makes the three streams usable: a closed one discards, or is empty; one that lacks a character escapes it.

    To be called once, after `occupy`.
    """
    codecs.register_error(UNENCODABLE, _escape)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(_binary(0, "rb"), encoding="utf-8")
    encoding = getattr(sys.stdout or sys.stderr, "encoding", "utf-8")
    terminal = os.isatty(1)
    sys.stdout = Results(_binary(1, "wb"), encoding=encoding, errors=UNENCODABLE, line_buffering=terminal)
    sys.stderr = Messages(2, encoding=encoding, errors=UNENCODABLE)


def _binary(number: int, mode: str, *, buffered: bool = True) -> Any:
    return open(number, mode, buffering=-1 if buffered else 0, closefd=False)


def discard(number: int) -> None:
    """Sends what is written to a stream, also what it still holds, nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
