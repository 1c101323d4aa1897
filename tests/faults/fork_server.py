"""A process that has trained already, and forks a child for each `alphastream` command: seconds of imports are spared.

    with ForkServer() as server:
        process = server.start(["train", config, "--run", run], log, faults=[fault("signal_at", step=5, number=9)])
        assert process.wait() == -9

Faults are functions of modules of tests.faults, called in the child before the command begins.
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.faults.small_run import small_run

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.005
READY = "ready\n"
Fault = tuple[str, dict[str, Any]]


def fault(name: str, **arguments: Any) -> Fault:
    """A function of `tests.faults.rank_faults`, or `module.function` of tests.faults, and what it is called with."""
    return name if "." in name else f"rank_faults.{name}", arguments


class ForkedProcess:
    """A child of the server: what tests use of a subprocess.Popen."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        if self._code is None:
            self._code = self._server.ask({"ended": self.pid})
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended. Raises: TimeoutError after so many seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} has not ended within {timeout} s")
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A context; what still lives of its children at the end is killed."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment or {}

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        faults: Sequence[Fault] = (),
    ) -> ForkedProcess:
        """A command, whose output is appended to `log`."""
        asked = {"arguments": arguments, "log": str(log), "environment": environment or {}, "faults": faults}
        return ForkedProcess(self, self.ask(asked))

    def ask(self, asked: Mapping[str, Any]) -> Any:
        """What it answers: a JSON value in a line, as it was asked in one."""
        assert self._server.stdin
        assert self._server.stdout
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self._environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout
        assert self._server.stdout.readline() == READY, "the server of children did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()


def _serve() -> None:
    """Of each line a child, or the exit code of one that has ended."""
    import torch

    from trainer.cli import main

    torch.set_num_threads(1)
    said = StringIO()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(said), redirect_stdout(said):
        # imports and compiles, once, what a run does on its way
        config, more = small_run(Path(folder)), ("--stepsize.policy", "auto", "--budget.steps", "12")
        main(["train", str(config), "--run", f"{folder}/run", *more, "--metrics.port", "0"])
        main(["verify", f"{folder}/run"])
    print(READY, end="", flush=True)
    living = set[int]()
    for line in sys.stdin:
        asked = json.loads(line)
        if "ended" in asked:
            pid, status = os.waitpid(asked["ended"], os.WNOHANG)
            living.discard(pid)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os._exit(_run_child(asked))
        living.add(child)
        print(child, flush=True)
    for child in living:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os._exit(0)  # there is nothing to tidy


def _run_child(asked: dict[str, Any]) -> int:
    from trainer.cli import main

    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    os.dup2(log, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(asked["environment"])
    try:
        for name, arguments in asked["faults"]:
            pkgutil.resolve_name(f"tests.faults.{name}")(**arguments)
        sys.argv = ["alphastream", *asked["arguments"]]
        return main()  # as a program, which sees to its streams and signals
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


if __name__ == "__main__":
    _serve()
