"""Several ranks of one run as children of a process that has trained already, which spares each of them the imports.

    with ForkedRanks(folder) as ranks:
        session = ranks.start(config, run, faults={1: fault("signal_at", step=5, number=signal.SIGKILL)})
        assert session.end() == [74, -signal.SIGKILL]

Faults are functions of `tests.faults.rank_faults`, called in a rank before it begins.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from tests.faults.forked_runs import ForkServer, small_run
from trainer.launch.environment import Meeting, rank_environment

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 120.0
"""A session takes less; its ranks are killed then, and the test fails."""
Fault = tuple[str, dict[str, Any]]


def fault(name: str, **arguments: Any) -> Fault:
    """A function of `tests.faults.rank_faults`, and what it is called with."""
    return name, arguments


@dataclass(kw_only=True)
class Session:
    """One start of all ranks."""

    server: ForkedRanks
    pids: list[int]
    logs: list[Path]
    meeting: Meeting
    codes: dict[int, int] = field(default_factory=dict)
    """Of ranks that have ended; negative for a signal."""

    def said(self, rank: int) -> str:
        return self.logs[rank].read_text(encoding="utf-8", errors="replace")

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once that is true; fails after `MOST_SECONDS`."""
        end = time.monotonic() + MOST_SECONDS
        while not (found := condition()):
            assert time.monotonic() < end, [self.said(rank) for rank in range(len(self.pids))]
            time.sleep(0.01)
        return found

    def code(self, rank: int) -> int | None:
        """The exit code of a rank; None while it lives."""
        if rank not in self.codes and (code := self.server.ask({"wait": self.pids[rank]})) is not None:
            self.codes[rank] = code
        return self.codes.get(rank)

    def stopped(self, rank: int) -> bool:
        """Whether a rank is stopped, as by SIGSTOP (Linux)."""
        return Path(f"/proc/{self.pids[rank]}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def send(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pids[rank], number)

    def end(self) -> list[int]:
        """The exit codes of all ranks, once they have ended."""
        try:
            self.wait_until(lambda: all(self.code(rank) is not None for rank in range(len(self.pids))))
        finally:
            for rank, pid in enumerate(self.pids):
                if rank not in self.codes:
                    os.kill(pid, signal.SIGKILL)
        return [self.codes[rank] for rank in range(len(self.pids))]


class ForkedRanks(ForkServer):
    """`alphastream train` by several ranks; a context."""

    def __init__(self, folder: Path) -> None:
        super().__init__("tests.faults.forked_ranks", OMP_NUM_THREADS="1")
        self.folder = folder
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
        logs = [self.folder / f"session-{self._sessions}-rank-{rank}.log" for rank in range(ranks)]
        pids = list[int]()
        for rank in range(ranks):
            given = (faults or {}).get(rank, [])
            asked = {
                "arguments": ["train", str(config), "--run", str(run), *more, *(only or {}).get(rank, ())],
                "log": str(logs[rank]),
                "environment": _environment(rank, ranks, meeting.port),
                "faults": [given] if isinstance(given, tuple) else list(given),
            }
            pids.append(self.ask(asked))
        return Session(server=self, pids=pids, logs=logs, meeting=meeting)

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


def _serve() -> None:
    """Of each line a child, or the exit code of one that has ended."""
    import torch

    from trainer.cli import main

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        # imports and compiles, once, what a rank does on its way
        config = small_run(Path(folder))
        main(["train", str(config), "--run", f"{folder}/run", "--stepsize.policy", "auto", "--budget.steps", "12"])
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            pid, status = os.waitpid(asked["wait"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os._exit(_run_rank(asked))
        print(child, flush=True)


def _run_rank(asked: dict[str, Any]) -> int:
    from tests.faults import rank_faults
    from trainer.cli import main

    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 2)
    os.dup2(log, 1)
    os.environ.update(asked["environment"])
    try:
        for name, arguments in asked["faults"]:
            getattr(rank_faults, name)(**arguments)
        sys.argv = ["alphastream", *asked["arguments"]]
        return main()  # as a program, which sees to its streams and signals
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


if __name__ == "__main__":
    _serve()
