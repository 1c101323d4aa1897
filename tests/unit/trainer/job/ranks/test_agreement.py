"""What ranks decide alike, and that they have trained on one batch."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pipeline.errors import StorageError
from tests.rank_threads import ThreadGroup, on_ranks
from trainer.job.ranks import Agreement
from trainer.ranks import Ranks


def reached(group: ThreadGroup, *, batch: tuple[int, ...] = (0, 0, 0, 0, 0, 0), **own: Any) -> Any:
    ranks = Ranks(rank=group.rank, ranks=group.ranks, batch=cast(Any, batch))
    cast(Any, ranks).gather = lambda numbers: group.gather(list(numbers))
    agreement = Agreement(ranks=ranks)
    try:
        seconds = agreement.reach(**{"stop": False, **own})
    except StorageError as error:
        return error
    return seconds, agreement.stop, agreement.save_asked, agreement.save_due, agreement.broken_weights


def test_alone_it_is_what_was_told() -> None:
    agreement = Agreement()
    assert agreement.reach(stop=False, save_asked=True, save_due=True, broken_weights=3, seconds=2.5) == 2.5
    assert (agreement.stop, agreement.save_asked, agreement.save_due, agreement.broken_weights) == (
        False,
        True,
        True,
        3,
    )


def test_a_stop_anywhere_is_everybodys_and_the_first_ranks_clock_and_saves_count() -> None:
    found = on_ranks(
        3, lambda group: reached(group, stop=group.rank == 2, save_due=group.rank == 1, seconds=10.0 * group.rank)
    )
    assert found == [(0.0, True, False, False, None)] * 3
    found = on_ranks(3, lambda group: reached(group, save_due=group.rank == 0, broken_weights=[None, 4, 2][group.rank]))
    assert found == [(0.0, False, False, True, 4)] * 3


@pytest.mark.parametrize("busy", [False, True])
def test_a_save_is_asked_for_anywhere_unless_one_is_under_way_somewhere(busy: bool) -> None:
    found = on_ranks(2, lambda group: reached(group, save_asked=group.rank == 1, busy=busy and group.rank == 0))
    assert found == [(0.0, False, not busy, False, None)] * 2


@pytest.mark.parametrize(
    ("batches", "same"),
    [
        ([(5, 16, 2, 8, 0, 16), (5, 16, 3, 8, 0, 16), (6, 16, 3, 8, 0, 16)], True),
        ([(0, 1, 0, 0, 2, 7), (0, 1, 0, 0, 2, 7), (1, 1, 0, 0, 2, 7)], True),
        ([(5, 16, 2, 8, 0, 16), (3, 9, 3, 8, 0, 16), (6, 16, 3, 8, 0, 16)], False),
        ([(5, 16, 2, 8, 0, 16), (4, 16, 3, 8, 0, 16), (6, 16, 3, 8, 0, 16)], False),
        ([(5, 16, 2, 8, 0, 16), (5, 16, 2, 5, 0, 16), (6, 16, 3, 8, 0, 16)], False),
        ([(5, 16, 2, 8, 0, 16), (5, 16, 2, 8, 0, 16), (6, 16, 3, 8, 0, 16)], False),
        ([(5, 16, 2, 8, 0, 16), (5, 16, 3, 8, 0, 32), (6, 16, 3, 8, 0, 16)], False),
        ([(5, 16, 2, 8, 0, 16), (5, 16, 3, 8, 1, 16), (6, 16, 3, 8, 0, 16)], False),
    ],
    ids=[
        *("one", "one of fewer rows than ranks", "a smaller one", "a row is missing"),
        *("a smaller probe", "a row of the probe is missing", "a gap further", "another epoch"),
    ],
)
def test_ranks_that_have_trained_on_other_rows_end_alike(batches: list[tuple[int, ...]], same: bool) -> None:
    found = on_ranks(3, lambda group: reached(group, batch=batches[group.rank]))
    if same:
        assert found == [(0.0, False, False, False, None)] * 3
    else:
        assert all("alphastream verify" in str(error) for error in found)
        assert len({str(error) for error in found}) == 1
