"""Training runs as children of a process that has made one already, which spares each of them seconds of imports.

A run may be given to strace at the moment of a certain save, to be killed or refused at a certain call of the system:

    with ForkedRuns(folder) as runs:
        runs.train(config, run, traced=TracedSave(step=4, options=("-e", "inject=fsync:signal=KILL:when=2")))

The tracer follows the one thread that makes the save: its calls are the same every time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.resume import lasting, same_bits
from tests.tiny_data import write_tiny

ROOT = Path(__file__).resolve().parents[2]
WRITING_CALLS = (
    "openat", "write", "writev", "pwrite64", "ftruncate", "fsync", "fdatasync", "chmod", "fchmod", "fchmodat", "mkdir",
    "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir",
)  # fmt: skip
"""All that can change what is on a disk, or make it last; openat also opens what is read."""
SAVES = (2, 4, 6)
"""The steps that the small run saves, the last at its end."""
SETTINGS = """
[data]
path = "{data}"
batch_rows = 8
[model]
table_rows = 16
embedding_dim = 2
bottom = [2]
top = [2, 1]
[optimizer]
average = "ema"
[stepsize]
policy = "observe"
interval = 2
count = 1
[budget]
steps = 6
[eval]
every_steps = 3
[checkpoint]
every_steps = 2
keep = 1
keep_best = false
[metrics]
port = -1
"""


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


def small_run(folder: Path) -> Path:
    """The configuration of a run of a few steps, whose data is made in `folder`."""
    data = write_tiny(folder / "data", {"train": [[80]], "validation": [[8]], "test": [[8]]})
    config = folder / "config.toml"
    config.write_text(SETTINGS.format(data=data), encoding="utf-8")
    return config


def same_end(run: Path, other: Path) -> bool:
    """Whether two runs ended alike to the last bit: weights, optimizer, average, losses, rates and estimates."""
    found, expected = lasting(run), lasting(other)
    return found[1:] == expected[1:] and same_bits(found[0], expected[0])


class ForkServer:
    """A module of tests as a process that has imported what its children need; a context."""

    def __init__(self, module: str, **environment: str) -> None:
        self._module, self._environment = module, environment

    def ask(self, asked: Mapping[str, Any]) -> Any:
        """What it answers: a JSON value in a line, as it was asked in one."""
        assert self._server.stdin
        assert self._server.stdout
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", self._module],
            cwd=ROOT,
            env={**os.environ, **self._environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()


class ForkedRuns(ForkServer):
    """`alphastream` commands in children of one process; a context."""

    def __init__(self, folder: Path) -> None:
        super().__init__("tests.faults.forked_runs")
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
        asked = {
            "arguments": arguments,
            "log": str(self.log),
            "trace": str(self.trace),
            "traced": None if traced is None else asdict(traced),
            "kill_seconds": kill_seconds,
        }
        return self.ask(asked)

    def calls_of(self, config: Path, run: Path, save: TracedSave) -> list[str]:
        """The names of all writing calls of a save, in order."""
        options = ("-e", f"trace={','.join(WRITING_CALLS)}", "-e", "signal=none")
        code = self.train(config, run, traced=TracedSave(step=save.step, final=save.final, options=options))
        assert code == 0, self.log.read_text()
        return re.findall(r"^(\w+)\(", self.trace.read_text(), flags=re.MULTILINE)


def _serve() -> None:
    """Of each line a child; answers with its exit code."""
    import torch

    from trainer.cli import main

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        # imports, once, what a run imports on its way
        main(["train", str(small_run(Path(folder))), "--run", f"{folder}/run"])
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run_child(asked))
        if asked["kill_seconds"] is not None:
            time.sleep(asked["kill_seconds"])  # nothing waits on it: the moment of the kill is what varies
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run_child(asked: dict[str, Any]) -> int:
    from trainer.cli import main

    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 2)
    os.dup2(log, 1)
    try:
        if asked["traced"] is not None:
            _trace_a_save(TracedSave(**asked["traced"]), asked["trace"])
        sys.argv = ["alphastream", *asked["arguments"]]
        return main()  # as a program, which sees to its streams and signals
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


def _trace_a_save(traced: TracedSave, trace: str) -> None:
    """Has the next save of that kind call strace to it."""
    from trainer.job import checkpointing, training_state
    from trainer.records import write_checkpoint

    waiting = [traced]

    def write(run: Path, step: int, *content: Any, **values: Any) -> Path:
        in_the_end = threading.current_thread() is threading.main_thread()
        if waiting and (step, in_the_end) == (traced.step, traced.final):
            waiting.clear()
            _attach([*traced.options, "-o", trace])
        return write_checkpoint(run, step, *content, **values)

    checkpointing.write_checkpoint = training_state.write_checkpoint = write  # pyright: ignore[reportPrivateImportUsage]
    checkpointing.pause = lambda _: None  # pyright: ignore[reportPrivateImportUsage]


def _attach(options: list[str]) -> None:
    """Returns once strace follows this thread, and no other."""
    command = ["strace", *options, "-p", str(threading.get_native_id())]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr
    said = tracer.stderr.readline()
    assert "attached" in said, said


if __name__ == "__main__":
    _serve()
