<<<<<<< HEAD
"""A rank alone says nothing to nobody; one that loses another says so, and what it has left word of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import StorageError
from tests.unit.trainer.ranks import losing
from tests.unit.trainer.ranks.processes import on_ranks
from trainer.ranks import Ranks, RanksConfig, RanksLostError, RowsOfRank


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
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    assert all(part.held <= -(-rows // ranks) for part in parts)
    assert parts[0].bounds() == [part.stop for part in parts]


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
=======
"""What a rank says when it fails, and what the others make of it."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from pipeline.errors import InputError, StorageError
from trainer.ranks import RankRefusedError, Ranks, RanksLostError, group


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> list[Ranks]:
    """Two ranks that share a store and nothing else, and wait for no word."""
    monkeypatch.setattr(group, "WORD_SECONDS", 0.0)
    store = HashStore()
    return [Ranks(rank=rank, ranks=2, store=store, timeout_seconds=3.0, step=1234) for rank in range(2)]


def lost(ranks: Ranks) -> Exception:
    """What the loss of its connection becomes."""
    with pytest.raises((RanksLostError, RankRefusedError)) as raised, ranks._contact("control"):
        raise RuntimeError("Connection closed by peer\nand where in gloo")
    return raised.value


def test_without_word_the_error_names_rank_and_step(pair: list[Ranks]) -> None:
    text = str(lost(pair[0]))
    assert text.startswith("rank 0 of 2 at step 1,234 (control): another rank has ended or has not answered within 3 s")
    assert "(Connection closed by peer)" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (StorageError("part-3:\n is damaged"), RanksLostError, "part-3: is damaged"),
        (InputError("/data does not exist"), RankRefusedError, "/data does not exist"),
        (KeyError("weights"), RanksLostError, "KeyError: 'weights'"),
        (KeyboardInterrupt(), RanksLostError, "a signal ended it at once"),
    ],
)
def test_the_word_of_the_rank_that_failed_is_the_error_of_all(
    pair: list[Ranks], error: BaseException, kind: type[Exception], text: str
) -> None:
    pair[1].say_failed(error)
    told = lost(pair[0])
    assert type(told) is kind
    assert str(told) == f"rank 1 has stopped: {text}"


def test_what_a_rank_was_told_it_does_not_pass_on_as_its_own(pair: list[Ranks]) -> None:
    pair[1].say_failed(InputError("/data does not exist"))
    told = lost(pair[0])
    pair[0].say_failed(told)
    assert str(lost(pair[0])) == str(told)
>>>>>>> wt-rfaults
