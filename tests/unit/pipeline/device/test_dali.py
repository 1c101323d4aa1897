from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.device.dali import DaliPairs
from pipeline.device.feed import DevicePair, Feed
from pipeline.errors import StorageError
from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.rows.order import RowPosition
from pipeline.rows.pairs import HostPairs, PairSpans
from pipeline.stages import StageTotals
from tests.resume import assert_identical, assert_resumes
from tests.tiny_data import CPU, TABLE_ROWS, feed, flip_in_row_group, reader, take, write_tiny
from tests.weighted_log import FORMAT, weighted_log

pytest.importorskip("nvidia.dali", reason="DALI is the extra `dali`")

ROWS = 77


def seen(pair: DevicePair) -> Any:
    """Everything of a pair, its memory's place apart."""
    facts = (pair.fresh, pair.epoch, pair.start, pair.rows, pair.position.epoch, pair.position.row, pair.skipped)
    return [tensor.cpu().clone() for tensor in (*pair.b1, *pair.b2)], facts


def assert_same(found: list[DevicePair], expected: list[DevicePair]) -> None:
    assert_identical([seen(pair) for pair in found], [seen(pair) for pair in expected])


def damage(data: Path) -> None:
    """Without shuffling rows 23..36 are lost: whole batches of 5."""
    for group in (0, 1):
        flip_in_row_group(data / "train" / "part-00001.parquet", group)


def dali_threads() -> list[str]:
    """Native threads of this process that DALI started; Python does not list them.

    Without those that the kernel marks as exiting (PF_EXITING): one that has been joined may be listed a little longer.
    """
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            name, fields = (task / "stat").read_text().rsplit(")", 1)
            if "DALI" in name and not int(fields.split()[6]) & 4:
                names.append(name)
    return names


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": "rows"},
        {"shuffle": "none", "probe_rows": 4, "prefetch_batches": 1},
        {"shuffle": "files", "batch_rows": 31, "prefetch_batches": 7},
        {"shuffle": "none", "pairing": "disjoint"},
        {"shuffle": "files", "pairing": "disjoint"},
        {"shuffle": "rows", "pairing": "disjoint", "batch_rows": 12, "probe_rows": 6, "read_threads": 1},
    ],
)
def test_the_pairs_are_those_of_the_ring_bit_for_bit(tiny_data, options):
    assert_same(take(tiny_data, 20, feed="dali", **options), take(tiny_data, 20, **options))


@pytest.mark.parametrize("pairing", ["sliding", "disjoint"])
def test_every_rank_gets_its_share_as_by_the_ring(tiny_data, pairing):
    """Four ranks of batches of three rows: some shares are empty, and are handed over as such."""
    shares = []
    for rank in range(4):
        options = {"rank": rank, "ranks": 4, "batch_rows": 3, "pairing": pairing}
        shares.append(take(tiny_data, 60, feed="dali", **options))
        assert_same(shares[-1], take(tiny_data, 60, **options))
    assert {pair.b2.rows for share in shares for pair in share} >= {0, 1}


def test_weights_of_rows_go_along_as_by_the_ring(tmp_path):
    weighted_log(200, seed=1).write(tmp_path / "log.csv")
    (tmp_path / "log.toml").write_text(FORMAT)
    preprocess(
        PreprocessConfig(sources=(str(tmp_path / "log.csv"),), format=str(tmp_path / "log.toml"), out=tmp_path / "data")
    )
    found, expected = (take(tmp_path / "data", 12, feed=kind, shuffle="rows") for kind in ("dali", "ring"))
    assert_same(found, expected)
    for ours, theirs in zip(found, expected, strict=True):
        for own, other in ((ours.b1, theirs.b1), (ours.b2, theirs.b2)):
            assert own.weight is not None
            assert other.weight is not None
            assert len(set(own.weight.tolist())) > 1
            assert torch.equal(own.weight, other.weight)


class WatchedFeed:
    """A feed by DALI, for the resume harness."""

    def __init__(self, data: Path, stack: ExitStack, **options: Any) -> None:
        self.feed: Feed = stack.enter_context(feed(data, feed="dali", **options))

    def advance(self) -> Any:
        return seen(next(self.feed))

    def state(self) -> Any:
        return self.feed.state_dict()

    def restore(self, state: Any) -> None:
        self.feed.load_state_dict(state)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("cut", [1, 7, 8])
@pytest.mark.parametrize(("pairing", "damaged"), [("sliding", "fail"), ("sliding", "skip"), ("disjoint", "skip")])
def test_resumes_exactly(tiny_data, stack, pairing, cut, damaged):
    options = {"pairing": pairing, "damaged": damaged, "batch_rows": 5}
    if damaged == "skip":
        damage(tiny_data)
    assert_resumes(lambda: WatchedFeed(tiny_data, stack, **options), steps=20, cut=cut)


def test_one_feed_goes_on_where_the_other_stopped(tiny_data):
    whole = take(tiny_data, 20)
    with feed(tiny_data) as ring, feed(tiny_data, feed="dali") as dali:
        got = list(islice(ring, 6))
        dali.load_state_dict(ring.state_dict())
        got += list(islice(dali, 7))
        ring.load_state_dict(dali.state_dict())
        assert_same([*got, *islice(ring, 7)], whole)


@pytest.mark.parametrize("prefetch", [1, 7])
@pytest.mark.parametrize("shuffle", ["none", "rows"])
def test_damage_is_skipped_and_counted_as_by_the_ring(tiny_data, prefetch, shuffle):
    damage(tiny_data)
    options = {"damaged": "skip", "batch_rows": 5, "shuffle": shuffle, "prefetch_batches": prefetch}
    with feed(tiny_data, feed="dali", **options) as found, feed(tiny_data, **options) as expected:
        for _ in range(40):
            assert_same([next(found)], [next(expected)])
            assert found.state_dict() == expected.state_dict()
        assert found.skipped_rows >= 2 * 14


def test_an_epoch_of_damage_ends_the_pairs(tmp_path):
    data = write_tiny(tmp_path / "data", {"train": [[7] * 11]})
    for group in range(11):
        flip_in_row_group(data / "train" / "part-00000.parquet", group)
    with feed(data, feed="dali", damaged="skip") as pairs:
        with pytest.raises(StorageError, match="damaged row groups leave no two batches"):
            next(pairs)
        assert not dali_threads()


def test_an_error_of_the_reader_arrives_as_it_was_raised_after_the_pairs_before_it(tiny_data):
    shard = tiny_data / "train" / "part-00002.parquet"
    flip_in_row_group(shard, 1)
    before = threading.active_count()

    def until_it_fails(**changes: Any) -> tuple[list[DevicePair], StorageError]:
        got: list[DevicePair] = []
        with pytest.raises(StorageError) as caught:
            got.extend(feed(tiny_data, shuffle="none", batch_rows=5, **changes))
        return got, caught.value

    got, error = until_it_fails(feed="dali")
    expected, error_of_ring = until_it_fails()
    assert_same(got, expected)
    assert len(got) > 3
    assert f"{shard}: row group 1" in str(error)
    assert str(error) == str(error_of_ring)
    assert isinstance(error.__cause__, StorageError)
    assert threading.active_count() == before
    assert not dali_threads()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_close_ends_every_thread(tiny_data, taken):
    before = threading.active_count()
    gc.disable()  # what only the collector would end does not count as ended
    try:
        pairs = feed(tiny_data, feed="dali")
        list(islice(pairs, taken))
        assert bool(dali_threads()) == (taken > 0)
        pairs.close()
        pairs.close()
        assert threading.active_count() == before
        assert not dali_threads()
    finally:
        gc.enable()


def test_the_queue_is_bounded_and_stages_are_accounted_for(tiny_data):
    with feed(tiny_data, feed="dali", prefetch_batches=3) as pairs, feed(tiny_data) as ring:
        for _ in range(8 * 10):
            next(pairs)
            next(ring)
            assert 0 <= pairs.queued_batches() <= 3
        stages = pairs.stage_totals()
        assert stages.keys() == ring.stage_totals().keys()
    # Ten epochs; a sliding probe is sent twice, but counted once.
    assert all(seconds > 0 and 10 * ROWS <= rows < 14 * ROWS for seconds, rows in stages.values())


Open = Callable[..., DaliPairs]


@pytest.fixture
def open_pairs(tiny_data: Path, stack: ExitStack) -> Open:
    """Pairs by DALI without a feed around them, from a row that no batch of a whole epoch starts at."""

    def start(device: torch.device = CPU, **options: Any) -> DaliPairs:
        spans = PairSpans(rows=ROWS, batch_rows=5, probe_rows=4)
        rows = reader(tiny_data, shuffle="none", on_damage="skip", table_rows=TABLE_ROWS)
        stack.callback(rows.close)
        host_pairs = HostPairs(rows, spans, RowPosition(epoch=1, row=13))
        pairs = DaliPairs(host_pairs, device=device, table_rows=TABLE_ROWS, stages=StageTotals(), **options)
        stack.callback(pairs.close)
        return pairs

    return start


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_checkpoint_of_dali_itself_restores_the_next_pair(tiny_data, open_pairs: Open, depth, damaged):
    if damaged:
        damage(tiny_data)
    whole = open_pairs(depth=depth)
    pairs, checkpoints = [], [whole.checkpoint()]
    for _ in range(40):
        pairs.append(whole.make().pair)
        checkpoints.append(whole.checkpoint())
    for cut in (0, 1, 11, 12, 13, 14, 25):
        resumed = open_pairs(depth=depth, checkpoint=checkpoints[cut])
        assert_same([resumed.make().pair for _ in range(5)], pairs[cut : cut + 5])


@pytest.mark.gpu
@pytest.mark.parametrize("prefetch", [1, 4])
@pytest.mark.parametrize("pairing", ["sliding", "disjoint"])
def test_cuda_gives_the_pairs_of_the_ring_bit_for_bit(tiny_data, prefetch, pairing):
    """Hundreds of pairs, all kept: memory that DALI filled again too early would mix rows."""
    options = {"device": torch.device("cuda", 0), "prefetch_batches": prefetch, "batch_rows": 5, "pairing": pairing}
    found, expected = take(tiny_data, 400, feed="dali", **options), take(tiny_data, 400, **options)
    assert found[0].b2.label.device == options["device"]
    assert_same(found, expected)
    assert not dali_threads()
