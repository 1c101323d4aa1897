"""`alphastream train --ranks N`: the command that was given, run by every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import InputError
from trainer.console import Console
from trainer.launch.rank_command import OF_LAUNCHER, same_program, without_options
from trainer.launch.supervisor import LaunchConfig, launch
from trainer.ranks import ranks_asked

PROGRAM = "trainer.cli"
ONCE = "--from-checkpoint"


def launch_training(
    arguments: Sequence[str], *, run: Path, ranks: int, max_restarts: int, grace_seconds: float, console: Console
) -> int:
    """Trains RUN on so many processes of this machine; `arguments` are those after `train`. Returns the exit code.

    Raises: InputError if this process is itself a rank, or the machine has fewer CUDA devices than ranks.
    """
    config = LaunchConfig(ranks=ranks, max_restarts=max_restarts, grace_seconds=grace_seconds)
    if (world := ranks_asked()) > 1:
        raise InputError(
            f"--ranks is {ranks}, but this process is one of {world} ranks already (WORLD_SIZE); leave --ranks out "
            "under torchrun"
        )
    check_devices(ranks)
    return launch(_command_of_attempt(arguments, run), config, run=run, console=console)


def check_devices(ranks: int) -> None:
    """Each rank has a CUDA device of its own where there are any. Raises: InputError if they are too few."""
    import torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else ranks
    if ranks > devices:
        raise InputError(
            f"--ranks is {ranks}, but this machine has {devices} CUDA device{'s' if devices > 1 else ''}; give at most "
            f"{devices}, or set CUDA_VISIBLE_DEVICES= to train on the processors"
        )


def _command_of_attempt(arguments: Sequence[str], run: Path) -> Callable[[int], list[str]]:
    """What ranks run at each attempt: without `--from-checkpoint` once the run has gone back, which it does once."""
    from trainer.records import starts_of

    given = ["train", *without_options(arguments, OF_LAUNCHER)]
    before = starts_of(run)

    def command(attempt: int) -> list[str]:
        gone_back = attempt > 0 and starts_of(run) > before
        return same_program(PROGRAM, arguments=without_options(given, (ONCE,)) if gone_back else given)

    return command
