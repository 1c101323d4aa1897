"""A rank alone says nothing to nobody; one that loses another says so, and what it has left word of."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import Any, cast

import pytest
import torch

from pipeline.errors import InputError, StorageError
from tests.rank_threads import ThreadGroup
from tests.rank_threads import on_ranks as on_threads
from tests.unit.trainer.ranks import losing
from tests.unit.trainer.ranks.processes import on_ranks
from trainer.ranks import Ranks, RanksConfig, RanksLostError, RowsOfRank, ranks_asked


def test_alone_everything_is_its_own() -> None:
    ranks = Ranks()
    assert ranks.alone
    assert ranks.first
    assert ranks.gather([1.0, 2.0]) == [[1.0, 2.0]]
    assert ranks.told_by_first({"a": 1}) == {"a": 1}
    tensor = torch.ones(3)
    assert ranks.sum(tensor, what="test") is tensor
    assert ranks.whole_batch(tensor, tensor, None) == (tensor, tensor, None)
    assert not ranks.sent_bytes


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 12])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_rows_of_ranks_are_all_rows_once_and_none_has_more_than_its_part(rows: int, ranks: int) -> None:
    parts = [RowsOfRank(rows=rows, rank=rank, ranks=ranks) for rank in range(ranks)]
    held = [[row for row in range(rows) if row % ranks == part.rank] for part in parts]
    for part, own in zip(parts, held, strict=True):
        assert part.held == len(own) <= -(-rows // ranks)
        assert [row // ranks for row in own] == list(range(part.held))
        assert [part.before(row) for row in range(rows + 1)] == [sum(r < row for r in own) for row in range(rows + 1)]
    assert parts[0].bounds() == list(accumulate(map(len, held), initial=0))


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        ("losses", ["rank 1 has stopped: data.path: there is no /nowhere"]),
        ("silent_losses", ["rank 0 of 2 at step 17 (control)", "another rank has ended", "newest checkpoint"]),
    ],
)
def test_a_rank_that_goes_is_told_of_in_one_line(workload: str, said: list[str], tmp_path: Any) -> None:
    [first] = on_ranks(2, getattr(losing, workload), folder=tmp_path, returning=1)
    assert all(part in first for part in said), first
    assert "\n" not in first


def test_a_lost_rank_is_an_error_of_input_and_output() -> None:
    assert issubclass(RanksLostError, StorageError)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_time_outs_are_positive_and_end(value: float) -> None:
    with pytest.raises(ValueError, match=r"ranks\.timeout_seconds"):
        RanksConfig(timeout_seconds=value)


@pytest.mark.parametrize(("said", "ranks"), [("", 1), ("1", 1), (" 2\n", 2), ("64", 64)])
def test_the_number_of_ranks_is_what_the_environment_says(monkeypatch: Any, said: str, ranks: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", said)
    assert ranks_asked() == ranks


@pytest.mark.parametrize("said", ["0", "-1", "two", "2.0"])
def test_an_environment_that_says_no_number_is_refused(monkeypatch: Any, said: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", said)
    with pytest.raises(InputError, match=rf"WORLD_SIZE is '{said}'; unset it"):
        ranks_asked()


def test_shares_of_another_batch_are_not_scored_as_one() -> None:
    """Of a validation batch that has 1000 rows on one machine, and 600 on another, whose copy is damaged."""

    def act(group: ThreadGroup) -> object:
        ranks = Ranks(rank=group.rank, ranks=group.ranks)
        cast(Any, ranks).gather = lambda numbers, **_: group.gather(list(numbers))
        share = torch.zeros(500 if group.rank == 0 else 300)
        with pytest.raises(StorageError, match=r"shares of \[500, 300\] rows, not \[400, 400\].*alphastream verify"):
            ranks.whole_batch(share, share, None)
        return None

    on_threads(2, act)


def test_a_batch_that_damage_leaves_no_row_is_one_of_none_if_it_does_so_everywhere() -> None:
    def act(group: ThreadGroup, *, of_second: int) -> object:
        ranks = Ranks(rank=group.rank, ranks=group.ranks)
        cast(Any, ranks).gather = lambda numbers, **_: group.gather(list(numbers))
        share = torch.zeros(0 if group.rank == 0 else of_second)
        if not of_second:
            return ranks.whole_batch(share, share, None)
        with pytest.raises(StorageError, match=r"shares of \[0, 300\] rows, not \[150, 150\]"):
            ranks.whole_batch(share, share, None)
        return None

    for logits, label, weight in on_threads(2, partial(act, of_second=0)):
        assert (len(logits), len(label), weight) == (0, 0, None)
    on_threads(2, partial(act, of_second=300))
