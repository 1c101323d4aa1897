"""The [data] section, and what it opens: a feed of pairs to train on, rows in file order to evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import torch

from pipeline.device.feed import DevicePair, Feed, PairMaker, PairSource, PairUploader
from pipeline.device.model_inputs import ModelInputs
from pipeline.device.ring import make_uploader
from pipeline.errors import InputError
from pipeline.rows import (
    GroupReader,
    OnDamage,
    Order,
    Pairing,
    PairPlan,
    PairStream,
    RowReader,
    Shuffle,
    StreamPosition,
)
from pipeline.shards import Manifest, check_cache, open_shards
from pipeline.stages import StageTotals, usable_cores

__all__ = ["DataConfig", "DevicePair", "Feed", "ModelInputs", "StreamPosition", "open_feed", "open_rows"]

FeedKind = Literal["ring", "dali"]

MOST_READER_THREADS = 4
"""Unless more are asked for."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The [data] section: which rows are trained on, in which order, and how they reach the device."""

    path: str
    """Folder that `alphastream preprocess` wrote, or a URI (s3://, gs://, hdfs://, file://) of a copy of one."""
    cache_path: str | None = None
    """Folder for downloaded shards of a remote data.path, used by processes of one machine; by default
    $XDG_CACHE_HOME or ~/.cache, then alphastream."""
    cache_bytes: int | None = None
    """Most bytes of downloaded shards, those of other runs included; by default half of what the disk has free."""
    batch_rows: int = 2048
    """Rows of a training batch, over all ranks."""
    probe_rows: int | None = None
    """Rows of the batch that α* is measured on; by default as many as batch_rows."""
    pairing: Pairing = "sliding"
    """sliding: the next training batch probes this step; disjoint: probe rows are not trained on."""
    seed: int = 0
    """Seed of the order of rows."""
    shuffle: Shuffle = "rows"
    """none: file order; files: shards in random order; rows: row groups in random order, then rows within windows."""
    shuffle_row_groups: int = 16
    """Row groups in a window whose rows are shuffled; memory: 10 MB for each of them, four or five times."""
    prefetch_batches: int = 4
    """Pairs made ahead of the trainer."""
    read_threads: int | None = None
    """Threads that read, decode and shuffle; by default one for each core that may be used, at most 4."""
    feed: FeedKind = "ring"
    """ring: this project's own feed; dali: NVIDIA DALI (extra `dali`), same batches."""
    damaged: OnDamage = "fail"
    """Where a row group is damaged: fail, or skip its rows (of a remote folder: its shard's) and count them."""

    def __post_init__(self) -> None:
        for name in (
            "cache_bytes",
            "batch_rows",
            "probe_rows",
            "shuffle_row_groups",
            "prefetch_batches",
            "read_threads",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"data.{name} = {value}; give a whole number of at least 1")
        choices = {"pairing": Pairing, "shuffle": Shuffle, "feed": FeedKind, "damaged": OnDamage}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"data.{name} = {getattr(self, name)!r}; choose one of {', '.join(get_args(kind))}")

    @property
    def reader_threads(self) -> int:
        """`read_threads`, or its default here."""
        return self.read_threads or min(usable_cores(), MOST_READER_THREADS)


def open_feed(
    config: DataConfig,
    *,
    table_rows: int,
    device: torch.device,
    split: str = "train",
    position: StreamPosition | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Feed:
    """The pairs of `split` on `device` from `position` (by default the beginning) on, epoch after epoch.

    With several ranks each gets its share of every batch of the same global sequence.
    Raises: InputError for data, split or batch sizes that cannot be used, or where `config.feed` is not installed;
    StorageError for damaged data.
    """
    manifest = Manifest.load(config.path)
    stages = StageTotals()
    order = _order(manifest, split, seed=config.seed, shuffle=config.shuffle, window_groups=config.shuffle_row_groups)
    check_cache(
        manifest,
        window_groups=order.window_groups,
        split=split,
        cache_path=config.cache_path,
        cache_bytes=config.cache_bytes,
    )
    plan = PairPlan(
        rows=order.rows,
        batch_rows=config.batch_rows,
        probe_rows=config.probe_rows or config.batch_rows,
        pairing=config.pairing,
    )

    encode_rows = table_rows if device.type == "cpu" else None
    make_maker = _maker(config, table_rows=table_rows, device=device, stages=stages)

    def make_source(start: StreamPosition) -> PairSource:
        reader = _reader(config, manifest, split, order, encode_rows=encode_rows, stages=stages)
        try:
            return PairSource(reader, make_maker(PairStream(reader, plan, start, rank=rank, ranks=ranks)))
        except BaseException:
            reader.close()
            raise

    return Feed(
        make_source,
        position=position or StreamPosition(),
        plan=plan,
        log_format=manifest.format,
        stages=stages,
        prefetch_batches=config.prefetch_batches,
    )


def open_rows(
    config: DataConfig,
    *,
    table_rows: int,
    device: torch.device,
    split: str,
    batch_rows: int,
    limit_rows: int | None = None,
) -> Iterator[ModelInputs]:
    """The rows of `split` in file order, each once, in batches of `batch_rows` (the last may be shorter).

    `limit_rows` ends it early. Threads end with the iterator. Raises: as `open_feed`, when first asked for a batch.
    """
    manifest = Manifest.load(config.path)
    order = _order(manifest, split, seed=0, shuffle="none", window_groups=1, limit_rows=limit_rows)
    stages = StageTotals()
    encode_rows = table_rows if device.type == "cpu" else None
    reader = _reader(config, manifest, split, order, encode_rows=encode_rows, stages=stages)
    end = order.rows if limit_rows is None else min(limit_rows, order.rows)
    try:
        uploader = make_uploader(device, table_rows=table_rows, stages=stages)
        for start in range(0, end, batch_rows):
            batch = reader.read(0, start, min(start + batch_rows, end))
            inputs = uploader.upload(batch)
            if (ready := uploader.mark()) is not None:
                ready.synchronize()
            if batch.rows:
                yield inputs
    finally:
        reader.close()


def _maker(
    config: DataConfig, *, table_rows: int, device: torch.device, stages: StageTotals
) -> Callable[[PairStream], PairMaker]:
    """What makes device pairs of a stream of pairs by `config.feed`."""
    if config.feed == "dali":
        from pipeline.device import dali

        dali.import_dali()  # where it is missing this raises now, not on the feed's thread
        depth = min(config.prefetch_batches, 2)
        return lambda pairs: dali.DaliPairs(pairs, device=device, table_rows=table_rows, depth=depth, stages=stages)
    return lambda pairs: PairUploader(pairs, make_uploader(device, table_rows=table_rows, stages=stages))


def _order(
    manifest: Manifest, split: str, *, seed: int, shuffle: Shuffle, window_groups: int, limit_rows: int | None = None
) -> Order:
    """The order of a split's rows, or of those of its first shards that hold `limit_rows`."""
    shards = manifest.splits[split].shards if split in manifest.splits else ()
    if limit_rows is not None:
        starts = accumulate((shard.rows for shard in shards), initial=0)
        shards = [shard for shard, start in zip(shards, starts, strict=False) if start < limit_rows]
    order = Order([shard.row_groups for shard in shards], seed=seed, shuffle=shuffle, window_groups=window_groups)
    if order.rows == 0:
        raise InputError(f"{manifest.folder} has no rows in split {split!r}; preprocess with a share for it")
    return order


def _reader(
    config: DataConfig, manifest: Manifest, split: str, order: Order, *, encode_rows: int | None, stages: StageTotals
) -> RowReader:
    """A reader of `split`; with `encode_rows` it encodes on the host for a table of so many rows."""
    groups = GroupReader(
        open_shards(manifest, split, cache_path=config.cache_path, cache_bytes=config.cache_bytes, stages=stages),
        manifest.splits[split].shards,
        manifest.format,
        compression=manifest.compression,
        table_rows=encode_rows,
        stages=stages,
    )
    return RowReader(
        groups,
        order,
        manifest.format,
        threads=config.reader_threads,
        encoded=encode_rows is not None,
        on_damage=config.damaged,
        stages=stages,
    )
