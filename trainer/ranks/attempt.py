"""A part of the ranks' store that no earlier start of theirs has written to.

torchrun on several hosts keeps one store for all its restarts, and its hosts count these apart: a rank that is quick
would read there where others listened before they were lost. So rank 0 draws a name for this attempt and each rank one
for itself, and each shows the other that it has read what was drawn just now. A process whose launcher was killed, and
which comes into the store of a new start, is found by that: two draw for one rank.
"""

from __future__ import annotations

import secrets
from time import monotonic, sleep

from torch.distributed.distributed_c10d import PrefixStore, Store

LOOK_SECONDS = 0.02


def attempt_store(store: Store, *, rank: int, ranks: int, seconds: float) -> PrefixStore:
    """The same part on every rank; all of them call it, and those of an earlier start have ended.

    Raises: RuntimeError if the others have not come within `seconds`, or another process takes itself for this rank.
    """
    shared, own, end = PrefixStore("attempt", store), secrets.token_hex(8), monotonic() + seconds
    attempt = own if rank == 0 else ""
    missing = set(range(1, ranks)) if rank == 0 else {0}
    shared.set(f"of {rank}", own)
    while missing:
        if rank == 0:
            missing -= {other for other in missing if _met(shared, other, attempt)}
        elif (read := _read(shared, f"for {rank}").split())[:1] == [own]:
            attempt = read[1]
            shared.set(f"known to {rank}", attempt)
            break
        if _read(shared, f"of {rank}") != own:
            raise RuntimeError(f"another process is rank {rank} as well; end those of an earlier start")
        if monotonic() > end:
            raise RuntimeError(f"no sign of rank {', '.join(map(str, sorted(missing)))}")
        sleep(LOOK_SECONDS)
    return PrefixStore(f"attempt {attempt}", shared)


def _met(shared: Store, other: int, attempt: str) -> bool:
    """Of rank 0: whether another rank knows the name of the attempt, which it is told with what it drew itself."""
    if _read(shared, f"known to {other}") == attempt:
        return True
    if of_other := _read(shared, f"of {other}"):
        shared.set(f"for {other}", f"{of_other} {attempt}")
    return False


def _read(store: Store, key: str) -> str:
    """What is there by now, without waiting for it."""
    return store.get(key).decode() if store.check([key]) else ""
