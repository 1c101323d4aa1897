"""A process that has trained already, and forks a child for each `alphastream` command: seconds of imports are spared.

    with ForkServer() as server:
        process = server.start(["train", config, "--run", run], log, faults=[fault("signal_at", step=5, number=9)])
        assert process.wait() == -9

Faults are functions of modules of tests.faults, called in the child before the command begins.
"""

from __future__ import annotations

import os
import pkgutil
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tests.faults.small_run import small_run
from tests.forking import ForkedProcess, Forks, serve

Fault = tuple[str, dict[str, Any]]


def fault(name: str, **arguments: Any) -> Fault:
    """A function of `tests.faults.rank_faults`, or `module.function` of tests.faults, and what it is called with."""
    return name if "." in name else f"rank_faults.{name}", arguments


class ForkServer(Forks):
    """A context; what still lives of its children at the end is killed."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        super().__init__("tests.faults.fork_server", environment)

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


def _warm_up() -> None:
    """Imports and compiles, once, what a run does on its way."""
    from trainer.cli import main

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config, more = small_run(Path(folder)), ("--stepsize.policy", "auto", "--budget.steps", "12")
        main(["train", str(config), "--run", f"{folder}/run", *more, "--metrics.port", "0"])
        main(["verify", f"{folder}/run"])


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
    serve(_warm_up, _run_child)
