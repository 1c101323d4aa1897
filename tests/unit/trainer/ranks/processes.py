"""Runs a function in several processes that form a group of ranks on gloo, and collects what each returns."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from trainer.ranks import Ranks, RanksConfig, open_ranks

SECONDS = 60.0


def on_ranks(
    ranks: int, function: Callable[..., Any], *arguments: Any, folder: Path, returning: int | None = None
) -> list[Any]:
    """What `function(ranks, *arguments)` returned on each rank, or on the first `returning`; importable functions and
    plain values only.

    One rank is this process.
    """
    if ranks == 1:
        return [function(Ranks(), *arguments)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    spawn(_run, ((ranks, port, str(folder), function, arguments),), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(returning or ranks)]


def _run(rank: int, settings: tuple[int, int, str, Callable[..., Any], tuple[Any, ...]]) -> None:
    ranks, port, folder, function, arguments = settings
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with open_ranks(RanksConfig(timeout_seconds=SECONDS)) as opened:
        torch.save(function(opened, *arguments), Path(folder) / f"{rank}.pt")
