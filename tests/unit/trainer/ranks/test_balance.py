"""No rank is asked for much more than another, where all small features have their rows at the table's beginning."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.encode import tsv
from pipeline.line_buffer import PADDING_BYTES
from pipeline.preprocess.formats import CRITEO_KAGGLE
from pipeline.schema import CRITEO, LogFormat
from trainer.ranks import Ranks, RowsAcrossRanks, RowsOfRank

TABLE_ROWS = 4_194_304


class Unanswered(Ranks):
    """Keeps the ids that a rank sends; what others would send is nothing, or zeros."""

    ids: Tensor

    def exchange(self, given: Tensor, *, give: Sequence[int], take: Sequence[int], what: str) -> Tensor:
        if what == "ids":
            self.ids = given
        return given.new_zeros(sum(take))


def look_up(ids: Tensor, *, rows: int, rank: int, ranks: int) -> tuple[RowsAcrossRanks, Tensor]:
    """A look-up of `ids`, and the ids that it sends."""
    group = Unanswered(rank=rank, ranks=ranks)
    found = RowsAcrossRanks(ids, RowsOfRank(rows=rows, rank=rank, ranks=ranks), group)
    return found, group.ids


def busiest_over_mean(ids: Tensor, *, ranks: int) -> float:
    """Of the rows that owners give when each rank looks up its share of `ids` (S, R)."""
    shares = ids.tensor_split(ranks, dim=1)
    asked = [look_up(share, rows=TABLE_ROWS, rank=rank, ranks=ranks)[0].asked for rank, share in enumerate(shares)]
    given = torch.tensor(asked).sum(0)
    return float(given.max() / given.double().mean())


def contiguous_busiest_over_mean(ids: Tensor, *, ranks: int) -> float:
    """The same if each rank had rows that follow one another."""
    most = -(-TABLE_ROWS // ranks)
    owners = [share.unique() // most for share in ids.tensor_split(ranks, dim=1)]
    given = torch.cat(owners).bincount(minlength=ranks)
    return float(given.max() / given.double().mean())


def skewed_ids(rows: int) -> Tensor:
    """(S, R) int32: features of 3 to ten million values, their frequent ones first, in one table without offsets."""
    sizes = torch.logspace(0.5, 7, 26, dtype=torch.float64).long()
    drawn = torch.rand((26, rows), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return ((drawn**3 * sizes[:, None]).long() % TABLE_ROWS).int()


@pytest.mark.parametrize(("ranks", "most"), [(2, 1.05), (3, 1.05), (8, 1.1), (64, 1.3)])
def test_the_busiest_owner_gives_little_more_than_the_mean(ranks: int, most: float) -> None:
    ids = skewed_ids(256 * ranks)
    assert busiest_over_mean(ids, ranks=ranks) < most
    if ranks > 3:
        assert contiguous_busiest_over_mean(ids, ranks=ranks) > 2  # the ids are such as make some owner busy


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_ids_go_to_their_owners_once_and_in_order(ranks: int) -> None:
    rows, ids = 37, torch.randint(37, (5, 40), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    found, sent = look_up(ids, rows=rows, rank=1, ranks=ranks)
    starts = RowsOfRank(rows=rows, rank=0, ranks=ranks).bounds()
    wanted = []
    for owner, part in enumerate(sent.split(found.asked)):
        own = [(int(place) - starts[owner]) * ranks + owner for place in part]
        assert own == sorted(set(ids[ids % ranks == owner].tolist()))
        wanted += own
    assert [wanted[place] for place in found.places] == ids.flatten().tolist()


@pytest.mark.parametrize("outside", [-1, -2, -37, 37, 38, 2_147_483_647, -2_147_483_648])
@pytest.mark.parametrize("ranks", [2, 3, 5, 64])
def test_ids_that_are_no_rows_are_refused_by_whoever_looks_them_up(ranks: int, outside: int) -> None:
    with pytest.raises(IndexError, match="index out of range: the table has 37 rows"):
        look_up(torch.tensor([3, outside, 5], dtype=torch.int32), rows=37, rank=1, ranks=ranks)


def test_the_last_rows_of_the_largest_table_of_32_bit_ids_are_found() -> None:
    rows, ids = 2_147_483_647, torch.arange(2_147_483_647 - 9, 2_147_483_647).int()
    for ranks in (2, 3, 8, 64):
        found, _ = look_up(ids, rows=rows, rank=0, ranks=ranks)
        assert sum(found.asked) == 9


@lru_cache(maxsize=1)
def encoded(log: Path, log_format: LogFormat, rows: int) -> Tensor:
    """(S, R) int32: the table rows of a log's first lines, in AlgoPerf's encoding."""
    with gzip.open(log) as file:
        text = b"".join(islice(file, rows))
    group, buffer = tsv.make_group(log_format, rows), np.frombuffer(text + bytes(PADDING_BYTES), np.uint8).copy()
    layout, tally = tsv.make_layout(log_format), tsv.make_tally(log_format)
    tsv.parse(buffer, 0, len(text), layout, group, 0, tally, tsv.make_rejects(), tsv.make_scratch(log_format))
    return torch.from_numpy(group.buckets[:, :rows].astype(np.float32).astype(np.int32) % TABLE_ROWS)


@pytest.mark.parametrize(
    ("log", "ranks", "contiguous", "now"),
    [("1tb", 8, 5.5, 1.4), ("1tb", 64, 39, 1.5), ("kaggle", 8, 4.2, 1.02), ("kaggle", 64, 4.3, 1.08)],
)
def test_of_real_rows_it_is_what_the_page_on_scale_says(
    real_data: Path, log: str, ranks: int, contiguous: float, now: float
) -> None:
    if log == "1tb":
        ids = encoded(real_data / "criteo_1tb_day0_10000.tsv.gz", CRITEO, 10_000)
    else:
        ids = encoded(real_data / "criteo_kaggle_137139.tsv.gz", CRITEO_KAGGLE, 131_072)
    assert contiguous_busiest_over_mean(ids, ranks=ranks) == pytest.approx(contiguous, rel=0.015)
    assert busiest_over_mean(ids, ranks=ranks) == pytest.approx(now, abs=0.05 if log == "1tb" else 0.005)
