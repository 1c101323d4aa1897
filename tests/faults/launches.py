"""The launcher in a process of its own, with small programs as ranks, to be disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.launch import LaunchConfig

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = """
import sys
from pathlib import Path
from trainer.process import as_program

def main():
    from trainer.console import Console
    from trainer.launch import LaunchConfig, launch, supervisor
    supervisor.LEAVE_SECONDS = {leave_seconds}
    run, program = Path(sys.argv[1]), sys.argv[2]
    command = [sys.executable, program, str(run)]
    {meet}
    return launch(lambda attempt: command, {config!r}, run=run, console=Console(), meet=meet)

sys.exit(as_program(main))
"""
MEETS = "from trainer.launch.environment import Meeting as meet"
NOBODY = "from contextlib import nullcontext; meet = lambda: nullcontext(type('Nobody', (), dict(port=1)))"
"""For ranks that need no store: that of torch takes long to import."""
RANK = """
import os, pathlib, signal, sys, time
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
run = pathlib.Path(sys.argv[1])
def note(text):
    with (run / f"notes-{rank}").open("a") as file:
        file.write(f"{attempt} {os.getpid()} {text}\\n")
"""
"""The beginning of a rank's program. A note is a line `attempt pid text` in RUN/notes-<rank>."""
TRAINS = (
    RANK
    + """
stopped = 0
def hear(number, _):
    global stopped
    name = signal.Signals(number).name
    note(name)
    stopped += name in ("SIGTERM", "SIGINT", "SIGQUIT")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, hear)
note("training")
while not stopped:
    time.sleep(0.01)
"""
)
"""A rank that notes what it hears, and goes on after its loop once it hears a stop."""


class Launch:
    """A launch in a process of its own, whose ranks run `program`, in a run that has begun."""

    def __init__(self, folder: Path, program: str, config: LaunchConfig, *, meet: str, leave_seconds: float) -> None:
        self.run, self.config = folder / "run", config
        self.run.mkdir(parents=True)
        (self.run / "config.toml").touch()
        (self.run / "lock").touch()
        (folder / "rank.py").write_text(program, encoding="utf-8")
        self._log = folder / "launch.log"
        text = LAUNCHER.format(config=config, meet=meet, leave_seconds=leave_seconds)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", text, str(self.run), str(folder / "rank.py")],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self) -> str:
        """What the launcher and rank 0 have said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def notes(self, rank: int) -> list[tuple[int, int, str]]:
        """Attempt, process id and text of what a rank has noted so far."""
        path = self.run / f"notes-{rank}"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [(int(attempt), int(pid), text) for attempt, pid, text in (line.split(" ", 2) for line in lines)]

    def texts(self, rank: int) -> list[str]:
        return [text for _, _, text in self.notes(rank)]

    def pids(self, *, attempt: int = 0) -> list[int]:
        """The processes of the ranks, once each of them has noted something at this attempt."""

        def found() -> list[int]:
            each = [[pid for at, pid, _ in self.notes(rank) if at == attempt] for rank in range(self.config.ranks)]
            return [pids[0] for pids in each] if all(each) else []

        return self.wait_until(found)

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once that is true; fails if the launcher ends first."""
        while not (found := condition()):
            assert self.process.poll() is None, self.said()
            time.sleep(0.02)
        return found

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Waits for the launcher; its exit code."""
        return self.process.wait(timeout=120)


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
