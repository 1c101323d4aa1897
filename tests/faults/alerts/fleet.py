"""Many training runs at once, as children of one process that has imported what they need.

For example:

    with Fleet(folder) as fleet:
        run = fleet.start("train", str(config), "--run", str(path))
        os.kill(run, signal.SIGTERM)
        assert fleet.end(run) == 143

What a run does by the minute it does here by the second, as the rules do that look at it (see `rules.shortened`): it
looks at its disk's free space every quarter of a second, and memory holds few records that cannot be written.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from types import TracebackType

from tests.faults.small_run import small_run
from tests.forking import ROOT

DISK_SECONDS = 0.25
WAITING_BYTES = 100_000
START_SECONDS = 1.0


class Fleet:
    """A context; at its end the runs that are left are killed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._logs = folder, dict[int, Path]()

    def start(self, *arguments: str) -> int:
        """An `alphastream` command; its process."""
        log = self._folder / f"log-{len(self._logs)}"
        process = self._ask(arguments=arguments, log=str(log))
        self._logs[process] = log
        return process

    def end(self, process: int) -> int:
        """Waits for a command; its exit code, negative for a signal."""
        return self._ask(wait=process)

    def said(self, process: int) -> str:
        """What a command has written so far."""
        return self._logs[process].read_text()

    def _ask(self, **asked: object) -> int:
        assert self._server.stdin
        assert self._server.stdout
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def __enter__(self) -> Fleet:
        command = [sys.executable, "-m", "tests.faults.alerts.fleet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()


def _serve() -> None:
    """Answers a line with the process of a child that was begun, or with the exit code of one that was waited for."""
    import torch

    from trainer.cli import main

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        # imports, once, what a run imports on its way
        main(["train", str(small_run(Path(folder))), "--run", f"{folder}/run"])
    _hasten()
    children: set[int] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
            children.discard(asked["wait"])
            continue
        child = os.fork()
        if child == 0:
            os._exit(_run_child(asked["arguments"], asked["log"]))
        children.add(child)
        print(child, flush=True)
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _hasten() -> None:
    from trainer.job import daemon
    from trainer.job.saving import disk_space
    from trainer.records import Records

    disk_space.SAMPLE_SECONDS = DISK_SECONDS  # pyright: ignore[reportPrivateImportUsage]
    daemon.START_SECONDS = START_SECONDS  # pyright: ignore[reportPrivateImportUsage]
    assert Records.__init__.__kwdefaults__ is not None
    Records.__init__.__kwdefaults__["limit_bytes"] = WAITING_BYTES


def _run_child(arguments: list[str], log: str) -> int:
    from trainer.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(0)
    try:
        return main(arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


if __name__ == "__main__":
    _serve()
