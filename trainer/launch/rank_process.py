"""One rank: a process in a session of its own, which gets only the signals that it is sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from trainer.launch.rank_log import RankLog

TETHER = Path(__file__).with_name("tether.py")
WORTH_NOTHING_YET = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What these ask for a process cannot do before it hears them; by default it would die of them."""
DRAIN_SECONDS = 5.0
"""So long a rank's last lines are waited for: a process that it left behind may hold the pipe open."""


class RankProcess:
    """The process of one rank, begun; to be made in the main thread, with which the kernel takes it to end.

    Rank 0 has this process's standard output and error. What others write goes to their `log`.
    """

    def __init__(
        self, rank: int, command: Sequence[str], environment: Mapping[str, str], *, log: RankLog | None
    ) -> None:
        self.rank, self.log = rank, log
        output = None if log is None else subprocess.PIPE
        # -I and -S: the tether needs nothing that is installed, and begins at once
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on once
        )
        self._pump: threading.Thread | None = None
        if log is not None:
            log.forget()
            self._pump = threading.Thread(target=self._read, args=(log,), name=f"rank-{rank}-output", daemon=True)
            self._pump.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Passes a signal on, unless it has ended, or would die of one that it can do nothing about yet."""
        if number not in WORTH_NOTHING_YET or _hears(self.pid, number):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it, and what it started."""
        if self._process.poll() is None:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Waits for its end, and for its last lines."""
        self._process.wait()
        if self._pump is not None:
            self._pump.join(DRAIN_SECONDS)
        if self.log is not None:
            self.log.flush()

    def _read(self, log: RankLog) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines, suppress(OSError, ValueError):
            for line in lines:
                log.write(line)


def _hears(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; where /proc doesn't tell, it is taken to."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return sys.platform != "linux"
    masks = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)
