"""Runs a function in several processes that form a group of ranks on gloo, and collects what each returns."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from trainer.ranks import Ranks, RanksConfig, open_ranks

SECONDS = 300.0
"""A rank that is in a larger group alone waits in it for the others to be through with the smaller ones."""


def on_ranks(
    ranks: int, function: Callable[..., Any], *arguments: Any, folder: Path, returning: int | None = None
) -> list[Any]:
    """What `function(ranks, *arguments)` returned on each rank, or on the first `returning`; importable functions and
    plain values only.

    One rank is this process.
    """
    if ranks == 1:
        return [function(Ranks(), *arguments)]
    spawn(_run, (_free_ports([ranks]), str(folder), function, arguments), nprocs=ranks)
    return [_returned(folder, ranks, rank) for rank in range(returning or ranks)]


def on_each_number_of_ranks(
    counts: list[int], function: Callable[..., Any], *arguments: Any, folder: Path
) -> dict[int, list[Any]]:
    """What `on_ranks` gives for each of `counts`, in one set of processes: they form one group after the other."""
    several = [count for count in counts if count > 1]
    spawn(_run, (_free_ports(several), str(folder), function, arguments), nprocs=max(several))
    found = {count: [_returned(folder, count, rank) for rank in range(count)] for count in several}
    return found | ({1: [function(Ranks(), *arguments)]} if 1 in counts else {})


def _free_ports(counts: list[int]) -> dict[int, int]:
    """One for each group, by its number of ranks."""
    with ExitStack() as stack:
        taken = {count: stack.enter_context(socket.socket()) for count in counts}
        for one in taken.values():
            one.bind(("127.0.0.1", 0))
        return {count: one.getsockname()[1] for count, one in taken.items()}


def _returned(folder: Path, ranks: int, rank: int) -> Any:
    return torch.load(folder / f"{rank} of {ranks}.pt", weights_only=False)


def _run(
    rank: int, ports: dict[int, int], folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    for ranks, port in ports.items():
        if rank >= ranks:
            continue
        place = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= place
        with open_ranks(RanksConfig(timeout_seconds=SECONDS)) as opened:
            torch.save(function(opened, *arguments), Path(folder) / f"{rank} of {ranks}.pt")
