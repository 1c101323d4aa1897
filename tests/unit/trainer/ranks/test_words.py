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
