"""Training runs as children of a process that has made one already, which spares each of them seconds of imports.

A run may be given to strace at the moment of a certain save, to be killed or refused at a certain call of the system:

    with ForkServer() as server:
        runs = ForkedRuns(server, folder)
        runs.train(config, run, traced=TracedSave(step=4, options=("-e", "inject=fsync:signal=KILL:when=2")))

The tracer follows the one thread that makes the save: its calls are the same every time.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.fork_server import ForkServer, fault

WRITING_CALLS = (
    "openat", "write", "writev", "pwrite64", "ftruncate", "fsync", "fdatasync", "chmod", "fchmod", "fchmodat", "mkdir",
    "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir",
)  # fmt: skip
"""All that can change what is on a disk, or make it last; openat also opens what is read."""


@dataclass(frozen=True, kw_only=True)
class TracedSave:
    """Which save is given to strace, and with which options."""

    step: int
    options: Sequence[str]
    final: bool = False
    """The one at the end of the run, not one in the middle of it."""


def why_untraced() -> str | None:
    """Why nothing can be traced here; None if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-qq", "-e", "trace=fsync", "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here ({tried.stderr.strip().splitlines()[-1]})" if tried.returncode else None


class ForkedRuns:
    """`alphastream` commands in children of one process, one after another."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._server = server
        self.log, self.trace = folder / "stderr", folder / "trace"

    def train(
        self,
        config: Path,
        run: Path,
        *more: str,
        traced: TracedSave | None = None,
        kill_seconds: float | None = None,
    ) -> int:
        """`alphastream train`; the exit code, negative for a signal. `trace` has what the tracer saw.

        It is killed so many seconds after it began, unless it has ended then.
        """
        return self.call("train", str(config), "--run", str(run), *more, traced=traced, kill_seconds=kill_seconds)

    def call(self, *arguments: str, traced: TracedSave | None = None, kill_seconds: float | None = None) -> int:
        """A command; the exit code, negative for a signal. `log` has its standard error."""
        self.trace.unlink(missing_ok=True)
        self.log.write_bytes(b"")
        faults = [] if traced is None else [fault("forked_runs.trace_a_save", trace=str(self.trace), **asdict(traced))]
        process = self._server.start(arguments, self.log, faults=faults)
        if kill_seconds is not None:
            time.sleep(kill_seconds)  # nothing waits on it: the moment of the kill is what varies
            process.kill()
        return process.wait()

    def calls_of(self, config: Path, run: Path, save: TracedSave) -> list[str]:
        """The names of all writing calls of a save, in order."""
        options = ("-e", f"trace={','.join(WRITING_CALLS)}", "-e", "signal=none")
        code = self.train(config, run, traced=TracedSave(step=save.step, final=save.final, options=options))
        assert code == 0, self.log.read_text()
        return re.findall(r"^(\w+)\(", self.trace.read_text(), flags=re.MULTILINE)


def trace_a_save(*, trace: str, step: int, final: bool, options: Sequence[str]) -> None:
    """A fault: has the next save of that kind call strace to it."""
    from trainer.job import checkpointing, training_state
    from trainer.records import write_checkpoint

    waiting = True

    def write(run: Path, at: int, *content: Any, **values: Any) -> Path:
        nonlocal waiting
        in_the_end = threading.current_thread() is threading.main_thread()
        if waiting and (at, in_the_end) == (step, final):
            waiting = False
            _attach([*options, "-o", trace])
        return write_checkpoint(run, at, *content, **values)

    checkpointing.write_checkpoint = training_state.write_checkpoint = write  # pyright: ignore[reportPrivateImportUsage]
    checkpointing.pause = lambda _: None  # pyright: ignore[reportPrivateImportUsage]


def _attach(options: list[str]) -> None:
    """Returns once strace follows this thread, and no other."""
    command = ["strace", *options, "-p", str(threading.get_native_id())]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr
    said = tracer.stderr.readline()
    assert "attached" in said, said
