"""Standard error whose other end is gone, full or asleep: lines are dropped and counted, nothing fails or hangs."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from contextlib import suppress

import pytest

from trainer.cli import streams
from trainer.cli.streams import LossyOutput


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def test_everything_is_written_where_somebody_reads(pipe: tuple[int, int]) -> None:
    output = LossyOutput(pipe[1])
    output.write(b"one\ntwo\n")
    output.write(b"x" * 20_000 + b"\n")
    assert os.read(pipe[0], 65_536) == b"one\ntwo\n" + b"x" * 20_000 + b"\n"
    assert output.lost_lines == 0


def test_a_pipe_without_reader_loses_lines_and_counts_them(pipe: tuple[int, int]) -> None:
    output = LossyOutput(pipe[1])
    os.close(pipe[0])
    output.write(b"one\ntwo\n")
    output.write(b"three\n")
    assert output.lost_lines == 3


def test_a_full_disk_and_a_closed_descriptor_lose_lines_and_count_them() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    output = LossyOutput(full)
    output.write(b"one\n")
    os.close(full)
    output.write(b"two\n")
    assert output.lost_lines == 2


def test_a_terminal_that_is_gone_loses_lines_and_counts_them() -> None:
    master, terminal = os.openpty()
    output = LossyOutput(terminal)
    output.write(b"one\n")
    assert os.read(master, 100) == b"one\r\n"
    os.close(master)
    output.write(b"two\n")
    assert output.lost_lines == 1
    os.close(terminal)


def test_a_reader_that_stops_reading_is_waited_for_once_and_told_what_it_missed(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PATIENCE_SECONDS", 0.001)
    output = LossyOutput(pipe[1])
    line = b"y" * 999 + b"\n"
    for _ in range(200):  # a pipe holds 64 KiB
        output.write(line)
    lost = output.lost_lines
    assert 100 < lost < 200
    assert len(os.read(pipe[0], 200_000)) <= 65_536
    output.write(b"awake\n")
    assert os.read(pipe[0], 200_000).endswith(f"({lost} lines before this one could not be written)\nawake\n".encode())
    output.write(b"again\n")
    assert os.read(pipe[0], 100) == b"again\n"
    assert output.lost_lines == lost


def test_a_terminal_that_is_stopped_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PATIENCE_SECONDS", 0.001)
    master, terminal = os.openpty()
    output = LossyOutput(terminal)
    termios.tcflow(terminal, termios.TCOOFF)  # as Control-S does
    for _ in range(200):
        output.write(b"z" * 999 + b"\n")
    assert output.lost_lines > 100
    termios.tcflow(terminal, termios.TCOON)
    os.close(master)
    os.close(terminal)


def test_a_line_cut_short_is_ended_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    output = LossyOutput(writer)
    write, room = os.write, [2]

    def nearly_full(number: int, data: bytes) -> int:
        if number == writer and room:
            taken = room.pop()
            if taken == 0:
                raise OSError
            room.append(0)
            return write(number, data[:taken])
        return write(number, data)

    monkeypatch.setattr(os, "write", nearly_full)
    output.write(b"cut short\n")
    output.write(b"whole\n")
    assert os.read(reader, 1000) == b"cu\n(1 lines before this one could not be written)\nwhole\n"
    assert output.lost_lines == 1
    os.close(reader)
    os.close(writer)
