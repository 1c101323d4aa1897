"""A few of the moments of `python -m tests.faults.signals`: while it starts, while it trains, and twice."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
from pathlib import Path

import pytest

from tests.faults.fork_server import ForkServer
from tests.faults.runs import Run, write_data, write_settings
from tests.faults.signals import disturbed, hears
from trainer.records import read_records

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process hears")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_settings(tmp_path / "config.toml", write_data(tmp_path / "data"), steps=1_000_000, port=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_run_that_starts_is_stopped_with_a_line(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    """The handlers are there before anything is imported that takes long."""
    outcome = disturbed(config, tmp_path / "run", number, 0.0)
    assert outcome.code == 143, outcome.said
    assert outcome.problem is None
    assert "interrupted; run the same command again" in outcome.said
    assert ("thread MainThread" in outcome.said) == (number == signal.SIGQUIT)
    assert not (tmp_path / "run").exists()


def hand_over(run: Run, fifo: Path, content: bytes) -> None:
    """Has the run read `content`, and its end, from a FIFO whose opening a signal may have just interrupted."""
    writer = os.open(fifo, os.O_RDWR)
    os.write(writer, content)
    run.wait_until(lambda: not any(fcntl.ioctl(writer, termios.FIONREAD, bytes(4))))
    os.close(writer)


def test_a_run_saves_goes_on_shows_its_threads_and_stops(server: ForkServer, config: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    run = Run(tmp_path / "fifo", tmp_path / "run", server=server)
    for early in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        run.wait_until(lambda early=early: hears(run.process.pid, early))
        run.process.send_signal(early)  # there is nothing to save yet: it waits for its configuration
    hand_over(run, tmp_path / "fifo", config.read_bytes())
    run.wait_until(lambda: run.ask("readyz")[0] == 200)
    run.wait_until(lambda: run.metric("steps_total") > 0)

    def saved() -> list[int]:
        return [record["step"] for record in read_records(run.path / "events.jsonl") if record["event"] == "checkpoint"]

    for count, number in enumerate((signal.SIGHUP, signal.SIGUSR1), 1):
        run.process.send_signal(number)
        run.wait_until(lambda count=count: len(saved()) == count)
        assert f"{number.name}: saving, then going on" in run.said()
    run.process.send_signal(signal.SIGUSR2)
    run.wait_until(lambda: run.said().count("SIGUSR2: the stacks of all threads") == 2)
    run.process.send_signal(signal.SIGXCPU)
    assert run.end() == 143, run.said()
    assert len(saved()) == 3
    assert "SIGXCPU: stopping after this step" in run.said()


def test_the_second_signal_leaves_at_once(server: ForkServer, tmp_path: Path) -> None:
    """Saved or not: with 143, a line, and no traceback."""
    data = write_data(tmp_path / "data")
    config = write_settings(tmp_path / "config.toml", data, steps=1_000_000, port=0)
    run = Run(config, tmp_path / "run", server=server)
    run.wait_until(lambda: run.ask("readyz")[0] == 200)
    for number in (signal.SIGTERM, signal.SIGINT):
        run.process.send_signal(number)
    assert run.end() == 143, run.said()
    assert "Traceback" not in run.said()
