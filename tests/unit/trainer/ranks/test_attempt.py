"""Ranks that start again find one another in a store that still has what the ranks before them wrote."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from trainer.ranks.attempt import attempt_store


def started(store: Store, ranks: int, *, last: int, key: str = "address") -> list[str]:
    """What each rank reads of rank 0's address, rank `last` being late, and each reading as soon as it can."""

    def start(rank: int) -> str:
        if rank == last:
            sleep(0.2)
        own = attempt_store(store, rank=rank, ranks=ranks, seconds=30.0)
        if rank == 0:
            sleep(0.1)
            own.set(key, f"of start {own.add('starts', 1)}")
        return own.get(key).decode()

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(start, range(ranks)))


@pytest.mark.parametrize("ranks", [2, 3])
def test_no_rank_reads_what_an_earlier_start_wrote(ranks: int) -> None:
    store = HashStore()
    for last in (0, 1, ranks - 1, 0):
        assert started(store, ranks, last=last) == ["of start 1"] * ranks


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_does_not_come_is_named(rank: int) -> None:
    store = HashStore()
    started(store, 2, last=0)  # has left its marks
    with pytest.raises(RuntimeError, match=rf"no sign of rank {1 - rank}$"):
        attempt_store(store, rank=rank, ranks=2, seconds=0.1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_an_earlier_start_that_comes_as_well_is_found_at_once(rank: int) -> None:
    """As of a launcher that was killed: whoever came first hears of it, and need not wait for others in vain."""
    store = HashStore()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(attempt_store, store, rank=rank, ranks=3, seconds=30.0)
        while not PrefixStore("attempt", store).check([f"of {rank}"]):
            sleep(0.01)
        with pytest.raises(RuntimeError, match="no sign of rank"):
            attempt_store(store, rank=rank, ranks=3, seconds=0.0)
        with pytest.raises(RuntimeError, match=f"another process is rank {rank} as well"):
            first.result(timeout=10.0)
