"""Standard input, output and error as a program may find them: closed, full, broken, or of a narrow encoding."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


class Messages(io.TextIOWrapper):
    """Standard error that never fails: what it cannot write is lost, and the work goes on."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        discard(self.fileno())


def occupy() -> None:
    """Opens those of the three streams that are closed, on nothing.

    To be called before anything else is opened: a file would take a closed stream's number, and be written to.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


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
    sys.stderr = Messages(_binary(2, "wb", buffered=False), encoding=encoding, errors=UNENCODABLE, write_through=True)


def _binary(number: int, mode: str, *, buffered: bool = True) -> Any:
    return open(number, mode, buffering=-1 if buffered else 0, closefd=False)


def discard(number: int) -> None:
    """Sends what is written to a stream, also what it still holds, nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
