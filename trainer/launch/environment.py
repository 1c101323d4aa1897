"""What a rank finds in its environment, as from torchrun, and the store where the ranks meet."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from types import TracebackType

from pipeline.stages import usable_cores

LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"


class Meeting:
    """torch's key-value store on a free port of this machine alone, for as long as it is a context.

    It is this process that serves it, on a socket that it has already: no port is looked for, given back and taken by
    somebody else meanwhile, and a lost rank does not take the store with it.
    """

    def __init__(self) -> None:
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        listening = socket.create_server((LOOPBACK, 0), backlog=1024)
        self.port: int = listening.getsockname()[1]
        self._store: TCPStore | None = TCPStore(
            LOOPBACK, self.port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
        )

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store = None


def threads_of_a_rank(ranks: int, environment: Mapping[str, str] = os.environ) -> int | None:
    """How many threads each of so many ranks computes with, that they share the cores; None: OMP_NUM_THREADS is set."""
    return None if environment.get("OMP_NUM_THREADS") else max(1, usable_cores() // ranks)


def rank_environment(
    rank: int, *, ranks: int, port: int, attempt: int, max_restarts: int, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """`environment` and torchrun's variables for this rank at its `attempt` (from 0).

    By TORCHELASTIC_USE_AGENT_STORE, `torch.distributed` takes the store that is there. gloo listens on this machine
    alone, unless GLOO_SOCKET_IFNAME is set.
    """
    values = dict(environment)
    if rank != 0:
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):  # rank 0 is who tells the service manager
            values.pop(name, None)
    if (threads := threads_of_a_rank(ranks, environment)) is not None:
        values["OMP_NUM_THREADS"] = str(threads)
    values.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK_INTERFACE)
    numbers = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "ROLE_RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "GROUP_WORLD_SIZE": 1,
        "ROLE_WORLD_SIZE": ranks,
        "MASTER_PORT": port,
        "TORCHELASTIC_RESTART_COUNT": attempt,
        "TORCHELASTIC_MAX_RESTARTS": max_restarts,
    }
    return {
        **values,
        **{name: str(number) for name, number in numbers.items()},
        "ROLE_NAME": "default",
        "MASTER_ADDR": LOOPBACK,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": f"alphastream-{port}",
    }
