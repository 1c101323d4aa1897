"""Ranks as threads of one process: what each returned or raised, with values gathered as JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.records import RowRange

MOST_SECONDS = 60.0
"""After which a rank that waits for one that never comes breaks the test."""


class Meeting:
    """Where the threads of all ranks leave their values."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.values: list[str] = [""] * ranks

    def meet(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = json.dumps(value, allow_nan=False)
        self.barrier.wait(MOST_SECONDS)
        found = [json.loads(text) for text in self.values]
        self.barrier.wait(MOST_SECONDS)
        return found


@dataclass
class ThreadGroup:
    """One rank's; `gathers` counts what it took part in."""

    rank: int
    ranks: int
    meeting: Meeting
    gathers: int = 0

    def gather(self, value: Any) -> list[Any]:
        self.gathers += 1
        return self.meeting.meet(self.rank, value)


def on_ranks(ranks: int, act: Callable[[ThreadGroup], Any]) -> list[Any]:
    """What `act` returned on each rank, or the error that it raised. A rank that ends by what is no Exception is dead:
    the others' next gather fails. All others must have met as often as one another."""
    meeting = Meeting(ranks)
    outcomes: list[Any] = [None] * ranks
    groups = [ThreadGroup(rank, ranks, meeting) for rank in range(ranks)]

    def run(group: ThreadGroup) -> None:
        try:
            outcomes[group.rank] = act(group)
        except Exception as error:  # an outcome as any other
            outcomes[group.rank] = error
        except BaseException as death:
            outcomes[group.rank] = death
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not meeting.barrier.broken:
        assert len({group.gathers for group in groups}) == 1, groups
    return outcomes


def share(rows: int, group: ThreadGroup) -> RowRange:
    """The rows of a rank: every so many-th, or none."""
    return RowRange(min(group.rank, rows), rows, rows, group.ranks)
