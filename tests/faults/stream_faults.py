"""What goes wrong with the output and errors of a process, arranged before its command begins."""

from __future__ import annotations

import os


def closed() -> None:
    os.close(1)
    os.close(2)


def full() -> None:
    _both(os.open("/dev/full", os.O_WRONLY))


def pipe_without_reader() -> None:
    reader, writer = os.pipe()
    _both(writer)
    os.close(reader)


def terminal_that_is_gone() -> None:
    master, terminal = os.openpty()
    _both(terminal)
    os.close(master)


def _both(file: int) -> None:
    os.dup2(file, 1)
    os.dup2(file, 2)
