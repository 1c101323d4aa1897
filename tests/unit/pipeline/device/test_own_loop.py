"""Pairs for a loop of one's own: their state, epochs, ranks, errors, and their place in a graph of torchdata.nodes."""

from __future__ import annotations

import copy
import doctest
import json
import os
import pickle
import signal
import threading
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchdata.nodes import Loader, Prefetcher

import pipeline
from pipeline.device import DevicePair
from pipeline.errors import InputError
from tests.tiny_data import write_tiny


def open_here(data: Path, **options: Any):
    return pipeline.open_pairs(str(data), **{"batch_rows": 20, "table_rows": 1000, "epochs": 2, "seed": 3, **options})


def values(pairs: Any) -> list[list[Any]]:
    """Every number of every batch."""
    return [[part.tolist() for batch in (pair.b1, pair.b2) for part in batch] for pair in pairs]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_state_continues_with_the_next_pair(tiny_data: Path, after: int) -> None:
    with open_here(tiny_data) as whole:
        expected = values(whole)
        assert len(expected) == 2 * whole.steps_per_epoch > 3
    with open_here(tiny_data) as begun:
        list(islice(begun, after))
        state = begun.state_dict()
    with open_here(tiny_data) as resumed:
        resumed.load_state_dict(state)
        assert values(resumed) == expected[after:]
        assert list(map(str, expected[: after + 1])) != list(map(str, expected[after:]))


def test_another_loop_begins_anew_with_the_next_epoch(tiny_data: Path) -> None:
    with open_here(tiny_data) as whole, open_here(tiny_data, epochs=1) as one:
        assert values(one) + values(one) == values(whole)


def test_a_loop_that_was_left_goes_on(tiny_data: Path) -> None:
    with open_here(tiny_data) as whole, open_here(tiny_data) as left:
        assert values(islice(left, 2)) + values(left) == values(whole)


@pytest.mark.parametrize("ranks", [2, 3])
def test_each_rank_has_its_contiguous_share_of_every_batch(tiny_data: Path, ranks: int) -> None:
    with ExitStack() as opened:
        whole = opened.enter_context(open_here(tiny_data))
        streams = [opened.enter_context(open_here(tiny_data, rank=rank, ranks=ranks)) for rank in range(ranks)]
        for pair, *shares in zip(whole, *streams, strict=True):
            for batch, *parts in [(pair.b1, *(each.b1 for each in shares)), (pair.b2, *(each.b2 for each in shares))]:
                rows = [part.rows for part in parts]
                assert max(rows) - min(rows) <= 1
                assert torch.equal(torch.cat([part.dense for part in parts]), batch.dense)
                assert torch.equal(torch.cat([part.ids for part in parts], dim=1), batch.ids)
                assert torch.equal(torch.cat([part.label for part in parts]), batch.label)
            assert [stream.state_dict() for stream in streams] == [whole.state_dict()] * ranks


def test_a_state_of_one_rank_continues_on_any_number_of_them(tiny_data: Path) -> None:
    with open_here(tiny_data) as whole:
        expected = [pair.b2.dense for pair in whole][2:]
    with open_here(tiny_data, rank=1, ranks=2) as begun:
        list(islice(begun, 2))
        state = begun.state_dict()
    with ExitStack() as opened:
        streams = [opened.enter_context(open_here(tiny_data, rank=rank, ranks=3)) for rank in range(3)]
        for stream in streams:
            stream.load_state_dict(state)
        for dense, *shares in zip(expected, *streams, strict=True):
            assert torch.equal(torch.cat([share.b2.dense for share in shares]), dense)


def test_batches_are_those_that_the_pairs_train_on(tiny_data: Path) -> None:
    with open_here(tiny_data) as pairs:
        expected = [pair.b2.dense.tolist() for pair in pairs]
    with pipeline.open_batches(str(tiny_data), batch_rows=20, table_rows=1000, epochs=2, seed=3) as batches:
        assert [batch.dense.tolist() for batch in batches] == expected


def test_a_split_gives_every_row_once(tiny_data: Path) -> None:
    from pipeline.shards import Manifest

    batches = list(pipeline.open_split(str(tiny_data), split="train", batch_rows=7, table_rows=1000))
    assert sum(batch.rows for batch in batches) == Manifest.load(tiny_data).splits["train"].rows


@pytest.mark.parametrize("share", [{}, {"rank": 1, "ranks": 2}], ids=["one process", "a rank"])
def test_a_graph_of_nodes_continues_behind_a_prefetcher(tiny_data: Path, share: dict[str, int]) -> None:
    with open_here(tiny_data, **share) as whole:
        expected = values(whole)
    with open_here(tiny_data, **share) as stream:
        loader: Loader[DevicePair] = Loader(Prefetcher(stream.node(), prefetch_factor=2))
        given = iter(loader)
        assert values(islice(given, 2)) == expected[:2]
        state = loader.state_dict()
        del given, loader
    with open_here(tiny_data, **share) as stream:
        loader = Loader(Prefetcher(stream.node(), prefetch_factor=2))
        loader.load_state_dict(state)
        assert values(loader) == expected[2:]


def test_no_thread_stays(tiny_data: Path) -> None:
    before = set(threading.enumerate())
    with open_here(tiny_data) as left:
        next(left)
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before
    list(ended := open_here(tiny_data))
    assert set(threading.enumerate()) == before
    del ended


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_rows": 0}, "batch_rows = 0"),
        ({"batch_rows": 10**6}, "1000000|1,000,000"),
        ({"table_rows": 0}, "table_rows = 0"),
        ({"epochs": 0}, "epochs = 0"),
        ({"rank": 2, "ranks": 2}, "rank = 2"),
        ({"device": "nonsense"}, "nonsense"),
        ({"split": "nonsense"}, "nonsense"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(tiny_data: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        open_here(tiny_data, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_a_foreign_state_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        open_here(tmp_path / "nowhere")
    with open_here(tiny_data) as stream, pytest.raises(InputError, match="the state lacks 'epoch'"):
        stream.load_state_dict({})


def test_the_example_of_the_package_does_what_it_says(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_data.parent)
    result = doctest.testmod(pipeline, extraglobs={"open_pairs": pipeline.open_pairs})
    assert (result.failed, result.attempted) == (0, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"table_rows": 2**31},  # ids are int32
        {"table_rows": [10, 10.0, 10]},
        {"table_rows": True},
        {"table_rows": "100"},
        {"batch_rows": 20.0},
        {"seed": "a"},
        {"epochs": 1.5},
        {"rank": 0.0, "ranks": 2},
        {"device": "meta"},  # would hold whatever its memory holds
        {"device": "cuda:99"},
        {"device": None},
    ],
    ids=str,
)
def test_options_of_another_kind_are_refused_in_a_line(tiny_data: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=str(next(iter(options)))) as caught:
        open_here(tiny_data, **options)
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_numpy_and_a_list_of_rows_are_taken(tiny_data: Path) -> None:
    options = {"table_rows": [np.int64(10), 20, 30], "batch_rows": np.int32(20), "seed": np.int64(3)}
    with open_here(tiny_data, **options) as given, open_here(tiny_data, table_rows=(10, 20, 30)) as expected:
        assert values(given) == values(expected)
        assert json.loads(json.dumps(given.state_dict())) == expected.state_dict()


@pytest.mark.parametrize("options", [{"seed": 4}, {"shuffle": "none"}, {"pairing": "held_out"}], ids=str)
def test_a_state_of_another_order_is_refused(tiny_data: Path, options: dict[str, Any]) -> None:
    with open_here(tiny_data) as begun:
        next(begun)
        state = begun.state_dict()
    with open_here(tiny_data, batch_rows=10, **options) as other, pytest.raises(InputError, match="in another order"):
        other.load_state_dict(state)
    del state["order"]  # of an earlier version
    with open_here(tiny_data) as same:
        same.load_state_dict(state)
        assert next(same).start == 20


def test_a_state_of_other_rows_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    other_data = write_tiny(tmp_path / "other", {"train": [[7] * 12]})
    with open_here(tiny_data) as begun, open_here(other_data) as other:
        next(begun)
        with pytest.raises(InputError, match="shards"):
            other.load_state_dict(begun.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {"row": "5"},
        {"row": 20.0},
        {"end_epoch": "x"},
        {"epoch": -3},
        {"order": None},
        {"order": ["seed"]},
        {"order": {"seed": np.zeros(2)}},
    ],
    ids=str,
)
def test_what_is_no_state_is_refused_in_a_line(tiny_data: Path, wrong: dict[str, Any] | None) -> None:
    with open_here(tiny_data) as stream:
        with pytest.raises(InputError) as caught:
            stream.load_state_dict(wrong if wrong is None else stream.state_dict() | wrong)  # pyright: ignore[reportArgumentType]
        assert "\n" not in str(caught.value)
        assert next(stream).start == 0


def status_of(child: int, seconds: float = 60.0) -> int:
    """The exit status of a child process, which is killed if it does not end: a lock may be held in it for ever."""
    ends = time.monotonic() + seconds
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the forked process hangs")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])


def test_a_stream_is_of_one_process(tiny_data: Path) -> None:
    with open_here(tiny_data) as stream:
        for copied in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="open one in each process"):
                copied(stream)
        next(stream)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                next(stream)
            except InputError:
                status = 0
            finally:
                os._exit(status)
        assert status_of(child) == 0
        next(stream)
