"""Programs as children of a process that has imported and used what they need, which spares each of them seconds.

with ForkedCommands() as forks:
    command = forks.start("train", config, "--run", run)
    command.kill()
    assert command.wait() == -signal.SIGKILL
"""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tests.forking import ForkedProcess, Forks, serve
from trainer.ranks import Ranks, RanksConfig, open_ranks

ALPHASTREAM = "import sys; from trainer.cli import main; sys.exit(main())"
SLOW = """
import sys, time
from trainer.step import TrainStep
make_step = TrainStep.__call__
def slowly(self, pair, **options):
    time.sleep({seconds} * (options["step"] >= {first}))
    return make_step(self, pair, **options)
TrainStep.__call__ = slowly
from trainer.cli import main
sys.exit(main())
"""
RANK = "import sys; from tests.integration.forked_commands import run_rank; run_rank(int(sys.argv[1]), sys.argv[2])"
STREAMS = ("stdout", "stderr")
MOST_SECONDS = 150.0
"""Whatever is waited for takes less; then the test fails."""


def slow_from(step: int, *, seconds: float = 0.05) -> str:
    """A program as `alphastream` whose steps take so much longer from one on: time to stop it before its end."""
    return SLOW.format(first=step, seconds=seconds)


class Command(ForkedProcess):
    """A child, and what it writes."""

    def __init__(self, server: ForkedCommands, pid: int, folder: Path) -> None:
        super().__init__(server, pid)
        self._folder = folder

    def wait(self, timeout: float | None = MOST_SECONDS) -> int:
        """The exit code, once it has ended; it is killed after so many seconds, and the test fails."""
        try:
            return super().wait(timeout)
        except TimeoutError:
            self.kill()
            raise AssertionError(f"it did not end:\n{self.said}") from None

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Polls until `condition`; fails if the process ends first."""
        while not condition():
            assert self.poll() is None or condition(), f"it ended before it could be disturbed:\n{self.said}"
            time.sleep(0.005)

    @property
    def said(self) -> str:
        """Its standard error so far."""
        return (self._folder / "stderr").read_text(encoding="utf-8")

    @property
    def printed(self) -> str:
        """Its standard output so far."""
        return (self._folder / "stdout").read_text(encoding="utf-8")


class ForkedCommands(Forks):
    """Commands, and ranks of a group, in children of one process; a context."""

    def __init__(self) -> None:
        super().__init__("tests.integration.forked_commands")

    def start(self, *arguments: object, program: str = ALPHASTREAM, **environment: str) -> Command:
        """As `python -c program arguments` would begin, in the root of the project."""
        folder = Path(tempfile.mkdtemp(dir=self._scratch.name))
        for name in STREAMS:
            (folder / name).touch()
        asked = {"program": program, "arguments": [*map(str, arguments)], "environment": environment}
        return Command(self, self.ask({**asked, "folder": str(folder)}), folder)

    def run(self, *arguments: object, **options: Any) -> Command:
        """A command that has ended."""
        command = self.start(*arguments, **options)
        command.wait()
        return command

    def on_ranks(self, ranks: int, function: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
        """What `function(ranks, *arguments)` returned on each rank; importable functions and plain values only.

        One rank is this process.
        """
        if ranks == 1:
            return [function(Ranks(), *arguments)]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = str(taken.getsockname()[1])
        (folder / "called.pickle").write_bytes(pickle.dumps((function, arguments)))
        environment = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = [self.start(rank, folder, program=RANK, RANK=str(rank), **environment) for rank in range(ranks)]
        for command in started:
            assert command.wait() == 0, command.said
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="forked-")
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._scratch.cleanup()


def run_rank(rank: int, folder: str) -> None:
    """One rank of `ForkedCommands.on_ranks`."""
    function, arguments = pickle.loads((Path(folder) / "called.pickle").read_bytes())
    with open_ranks(RanksConfig(timeout_seconds=60.0)) as opened:
        torch.save(function(opened, *arguments), Path(folder) / f"{rank}.pt")


def _warm_up() -> None:
    """Imports and compiles, once, what a command does on its way."""
    from trainer.cli import main

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        log, data, run = folder / "log", folder / "data", folder / "run"
        (folder / "config.toml").write_text(
            f'[data]\npath = "{data}"\nbatch_rows = 8\n[model]\ntable_rows = 16\n[stepsize]\npolicy = "auto"\n'
            "[budget]\nsteps = 12\n[metrics]\nport = -1\n",
            encoding="utf-8",
        )
        for command in (
            ["sample", log, "--rows", "300"],
            ["preprocess", log, "--out", data],
            ["train", folder / "config.toml", "--run", run],
            ["predict", run, log, "--out", folder / "scores.parquet"],
        ):
            main([*map(str, command)])
    importlib.import_module("tests.integration.ranks_jobs")


def _run_child(asked: dict[str, Any]) -> int:
    for number, name in enumerate(STREAMS, start=1):
        os.dup2(os.open(f"{asked['folder']}/{name}", os.O_WRONLY | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(asked["environment"])
    sys.argv = ["-c", *asked["arguments"]]
    code: int | str | None = 0
    try:
        exec(compile(asked["program"], "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve(_warm_up, _run_child)
