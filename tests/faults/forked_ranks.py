"""Several ranks of one run as children of a process that has trained already, which spares each of them the imports.

    with ForkServer() as server:
        ranks = ForkedRanks(server, folder)
        session = ranks.start(config, run, faults={1: fault("signal_at", step=5, number=signal.SIGKILL)})
        assert session.end() == [74, -signal.SIGKILL]

Faults are functions of `tests.faults.rank_faults`, called in a rank before it begins.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tests.faults.fork_server import Fault, ForkServer
from tests.forking import POLL_SECONDS, ForkedProcess
from trainer.launch.environment import Meeting, rank_environment

MOST_SECONDS = 120.0
"""A session takes less; its ranks are killed then, and the test fails."""


@dataclass(kw_only=True)
class Session:
    """One start of all ranks."""

    processes: list[ForkedProcess]
    logs: list[Path]
    meeting: Meeting

    def said(self, rank: int) -> str:
        return self.logs[rank].read_text(encoding="utf-8", errors="replace")

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once that is true; fails after `MOST_SECONDS`."""
        end = time.monotonic() + MOST_SECONDS
        while not (found := condition()):
            assert time.monotonic() < end, [self.said(rank) for rank in range(len(self.processes))]
            time.sleep(POLL_SECONDS)
        return found

    def code(self, rank: int) -> int | None:
        """The exit code of a rank; None while it lives."""
        return self.processes[rank].poll()

    def stopped(self, rank: int) -> bool:
        """Whether a rank is stopped, as by SIGSTOP (Linux)."""
        return Path(f"/proc/{self.processes[rank].pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def send(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def end(self) -> list[int]:
        """The exit codes of all ranks, once they have ended."""
        try:
            self.wait_until(lambda: all(process.poll() is not None for process in self.processes))
        finally:
            for process in self.processes:
                process.kill()
        return [process.wait() for process in self.processes]


class ForkedRanks:
    """`alphastream train` by several ranks."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._sessions = 0

    def start(
        self,
        config: Path,
        run: Path,
        *more: str,
        ranks: int = 2,
        faults: Mapping[int, Fault | Sequence[Fault]] | None = None,
        only: Mapping[int, Sequence[str]] | None = None,
    ) -> Session:
        """Starts all ranks, with further arguments for all and for `only` some, and these `faults`."""
        meeting, self._sessions = Meeting(), self._sessions + 1
        logs = [self._folder / f"session-{self._sessions}-rank-{rank}.log" for rank in range(ranks)]
        processes = list[ForkedProcess]()
        for rank in range(ranks):
            given = (faults or {}).get(rank, [])
            arguments = ["train", str(config), "--run", str(run), *more, *(only or {}).get(rank, ())]
            environment = _environment(rank, ranks, meeting.port)
            planted = cast(Sequence[Fault], [given] if isinstance(given, tuple) else given)
            processes.append(self._server.start(arguments, logs[rank], environment=environment, faults=planted))
        return Session(processes=processes, logs=logs, meeting=meeting)

    def train(self, config: Path, run: Path, *more: str, **options: Any) -> Session:
        """A session that has ended."""
        session = self.start(config, run, *more, **options)
        session.end()
        return session


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    if ranks == 1:
        return {}
    own = {"OMP_NUM_THREADS": "1"}
    return rank_environment(rank, ranks=ranks, port=port, attempt=0, max_restarts=0, environment=own)
