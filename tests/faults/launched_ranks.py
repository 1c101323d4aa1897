"""Ranks that a launcher has started, the project's own or torchrun: real processes, to be disturbed from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OWN = ("-m", "trainer.cli", "train")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "--", "trainer.cli", "train")
"""Without `--`, torchrun takes `--run` for an option of its own."""
MOST_SECONDS = 240.0


class LaunchedRanks:
    """Two ranks of a run, under a launcher."""

    def __init__(self, launcher: Sequence[str], config: Path, run: Path, *more: str) -> None:
        self.run, self._log = run, run.with_name(f"{run.name}.log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, str(config), "--run", str(run), *more],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def ranks(self) -> list[int]:
        """The processes of the ranks, in the order they were started (Linux)."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sorted(int(pid) for pid in children if b"trainer.cli" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def last_checkpoint(self) -> int:
        """Step of the newest; 0 without one."""
        names = (path.name for path in (self.run / "checkpoints").glob("step-*"))
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once that is true; fails if the launcher ends first."""
        end = time.monotonic() + MOST_SECONDS
        while not (found := condition()):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)
        return found

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Waits for the launcher; its exit code."""
        return self.process.wait(timeout=MOST_SECONDS)

    def close(self) -> None:
        """Ends it with whatever it has started, if it has not ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
