"""Runs of the command line in processes of their own, to be disturbed: what they train on, say and leave."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fork_server import Fault, ForkServer
from tests.tiny_data import write_tiny

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
"""Two epochs of six shards of 40 rows, in batches of 8."""
CONFIG = """
[data]
path = "{data}"
batch_rows = 8
shuffle = "none"
read_threads = 1
prefetch_batches = 1
retry_seconds = {retry_seconds}
[model]
table_rows = 64
embedding_dim = 4
bottom = [4]
top = [4, 1]
[budget]
steps = {steps}
[metrics]
port = {port}
last_scrape_seconds = 0
{more}
"""


def write_data(folder: Path) -> Path:
    """Six shards of two row groups, and a few rows of the other splits."""
    return write_tiny(folder, {"train": [[20, 20]] * 6, "validation": [[16]], "test": [[16]]})


def write_settings(path: Path, data: Path, more: str = "", *, steps: int = STEPS, port: int = -1, retry: float = 60):
    """A configuration for `train`, in the file `path`."""
    path.write_text(CONFIG.format(data=data, steps=steps, port=port, more=more, retry_seconds=retry))
    return path


CAN_BLOCK = sys.platform == "linux" and shutil.which("cc") is not None
"""Whether the library of blocked_reads.c can be made, and works."""


class Run:
    """A `train` in a process of its own, and what it writes to standard error.

    Forked by `server`, which takes a tenth of the time of a new one; `faults` are planted in that.
    """

    def __init__(
        self,
        config: Path,
        run: Path,
        *,
        server: ForkServer | None = None,
        environment: Mapping[str, str] | None = None,
        faults: Sequence[Fault] = (),
    ) -> None:
        self.log = run.with_name(f"{run.name}.log")
        self.path = run
        arguments = ["train", str(config), "--run", str(run)]
        with self.log.open("ab") as log:
            self._from = log.tell()
            if server is not None:
                self.process = server.start(arguments, self.log, environment=environment, faults=faults)
                return
            command = [sys.executable, "-m", "trainer.cli", *arguments]
            own = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
            self.process = subprocess.Popen(command, cwd=ROOT, env=own, stderr=log)

    def said(self) -> str:
        """What this process has said so far."""
        return self.log.read_bytes()[self._from :].decode()

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once that is true; fails if the process ends first."""
        while not (found := condition()):
            assert self.process.poll() is None, self.said()
            time.sleep(0.02)
        return found

    def ask(self, path: str) -> tuple[int, str]:
        """Status and body of what the run serves."""
        address = self.wait_until(lambda: re.search(r"live page (http://\S+/)", self.said()))[1]
        try:
            with urllib.request.urlopen(f"{address}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """A series of the run, by its name without prefix but with labels."""
        line = re.search(rf"^alphastream_{re.escape(name)} (\S+)$", self.ask("metrics")[1], re.MULTILINE)
        assert line, name
        return float(line[1])

    def status(self) -> dict[str, Any]:
        return json.loads(self.ask("status.json")[1])

    def end(self, *, at_most_seconds: float = 120) -> int:
        """Waits for the process; its exit code."""
        return self.process.wait(timeout=at_most_seconds)


def block_library(folder: Path) -> Path:
    """The shared library of blocked_reads.c; without a compiler the test is skipped."""
    if not CAN_BLOCK:
        pytest.skip("a library that blocks reads needs a C compiler, and Linux")
    library = folder / "blocked_reads.so"
    source = Path(__file__).with_name("blocked_reads.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library
