"""A feed that is filled before its first pair is asked for: the same pairs, and the same errors, at the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.device import DevicePair
from pipeline.errors import StorageError
from tests.resume import assert_identical
from tests.tiny_data import feed, flip_in_row_group


def seen(pair: DevicePair) -> Any:
    return [tensor.clone() for tensor in (*pair.b1, *pair.b2)], (pair.start, pair.position.row)


def test_it_stands_where_it_stood_and_gives_the_same_pairs(tiny_data: Path) -> None:
    with feed(tiny_data) as plain, feed(tiny_data) as filled:
        filled.fill()
        filled.fill()
        assert filled.state_dict() == plain.state_dict()
        assert filled.queued_batches() >= 1
        assert_identical([seen(next(filled)) for _ in range(9)], [seen(next(plain)) for _ in range(9)])
        filled.fill()
        assert_identical(seen(next(filled)), seen(next(plain)))


def test_a_state_loaded_after_it_was_filled_is_where_it_goes_on(tiny_data: Path) -> None:
    with feed(tiny_data) as plain, feed(tiny_data) as filled:
        for _ in range(3):
            next(plain)
        filled.fill()
        filled.load_state_dict(plain.state_dict())
        assert_identical(seen(next(filled)), seen(next(plain)))


def test_an_error_of_the_first_pair_waits_for_next(tiny_data: Path) -> None:
    for group in range(3):
        flip_in_row_group(tiny_data / "train" / "part-00000.parquet", group)
    with feed(tiny_data) as filled:
        filled.fill()
        with pytest.raises(StorageError):
            next(filled)
