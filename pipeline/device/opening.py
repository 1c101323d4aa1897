"""What the [data] section opens: a feed of pairs to train on, rows in file order to evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.device.config import DataConfig
from pipeline.device.feed import Feed, PairMaker, PairNode, PairUploader
from pipeline.device.model_inputs import ModelInputs
from pipeline.device.ring import make_uploader
from pipeline.device.streams import hand_over
from pipeline.errors import InputError, StorageError
from pipeline.reads import ReadRetries, never
from pipeline.rows import (
    GenerationPairs,
    GroupReader,
    GrowingLog,
    HeldOutProbes,
    HostPairs,
    Moduli,
    Order,
    PairSpans,
    RankShare,
    RowPosition,
    RowReader,
    RowSelection,
    Shuffle,
    hold_out,
    probing_order,
    united,
)
from pipeline.shards import Manifest, check_cache, open_shards
from pipeline.stages import StageTotals


def open_feed(
    config: DataConfig,
    manifest: Manifest,
    *,
    table_rows: Moduli,
    device: torch.device,
    split: str = "train",
    position: RowPosition | None = None,
    rank: int = 0,
    ranks: int = 1,
    retries: ReadRetries | None = None,
) -> Feed:
    """The pairs of `split` on `device` from `position` (by default the beginning) on, epoch after epoch.

    With `config.follow` an epoch is one generation, and at the end of the last the next is waited for.
    `manifest` is that of the folder `config.path`, loaded once for all that is opened of it. With several ranks each
    gets its share of every batch of the same global sequence.
    Raises: InputError for data, split or batch sizes that cannot be used, or if `config.feed` is not installed;
    StorageError for damaged data.
    """
    if config.follow:
        return _open_following(
            config,
            manifest,
            table_rows=table_rows,
            device=device,
            split=split,
            start=position,
            rank=rank,
            ranks=ranks,
            retries=retries,
        )
    stages = StageTotals()
    probes = _held_out(config, manifest, split) if config.pairing == "held_out" else None
    order = _training_order(config, manifest, split, only=probes and probes.others())
    probe_order = None if probes is None else _probing_order(config, manifest, split, only=probes)
    spans = PairSpans(
        rows=order.rows,
        batch_rows=config.batch_rows,
        probe_rows=config.probe_rows or config.batch_rows,
        pairing=config.pairing,
    )

    encode_rows = table_rows if device.type == "cpu" else None
    make_maker = _maker(config, table_rows=table_rows, device=device, stages=stages)
    share = RankShare(rank=rank, ranks=ranks)
    open_reader = partial(_reader, config, manifest, split, encode_rows=encode_rows, stages=stages, retries=retries)

    def open_probes() -> HeldOutProbes | None:
        if probe_order is None:
            return None
        last_epoch = 0 if probe_order.window_count() == 1 else None
        return HeldOutProbes(
            open_reader(order=probe_order, last_epoch=last_epoch, held_out=True), probe_rows=spans.probe_rows
        )

    def make_node(start: RowPosition) -> PairNode:
        with ExitStack() as opened:
            reader = opened.enter_context(
                closing(open_reader(order=order, share=share, wanted=spans.wanted(share, start)))
            )
            probes = open_probes()
            pairs = HostPairs(reader, spans, start, held_out=probes)
            opened.callback(pairs.close)
            node = PairNode(pairs, make_maker(pairs))
            opened.pop_all()
        return node

    return Feed(
        make_node,
        position=position or RowPosition(),
        rows_of=lambda epoch: spans.rows,
        steps_per_epoch=spans.steps_per_epoch,
        log_format=manifest.format,
        stages=stages,
        prefetch_batches=config.prefetch_batches,
        held_out_rows=0 if probe_order is None else probe_order.rows,
        sources=lambda epoch, start, stop: _sources(order, manifest, split, epoch, start, stop),
    )


def _open_following(
    config: DataConfig,
    manifest: Manifest,
    *,
    table_rows: Moduli,
    device: torch.device,
    split: str,
    start: RowPosition | None,
    rank: int,
    ranks: int,
    retries: ReadRetries | None,
) -> Feed:
    """The pairs of each generation of `split` once, in order, and of those that are added."""
    stages = StageTotals()
    log = GrowingLog(manifest, data=config.path, poll_seconds=config.follow_poll_seconds)
    encode_rows, share = table_rows if device.type == "cpu" else None, RankShare(rank=rank, ranks=ranks)

    def open_generation(alone: Manifest, index: int) -> tuple[RowReader, HostPairs]:
        order = _training_order(config, alone, split)
        spans = PairSpans.within(
            rows=order.rows,
            batch_rows=config.batch_rows,
            probe_rows=config.probe_rows or config.batch_rows,
            pairing=config.pairing,
        )
        reader = _reader(
            config,
            alone,
            split,
            order=order,
            encode_rows=encode_rows,
            last_epoch=index,
            share=share,
            wanted=spans.wanted(share, start or RowPosition()),
            stages=stages,
            retries=retries,
        )
        return reader, HostPairs(reader, spans, RowPosition(epoch=index))

    def make_node(position: RowPosition) -> PairNode:
        pairs = GenerationPairs(log, open_generation, position, split=split)
        maker = PairUploader(pairs, make_uploader(device, table_rows=table_rows, stages=stages))
        return PairNode(pairs, maker, dry=lambda: pairs.waiting)

    return Feed(
        make_node,
        position=start or RowPosition(),
        rows_of=lambda epoch: log.rows(split, epoch),
        steps_per_epoch=None,
        log_format=manifest.format,
        stages=stages,
        prefetch_batches=config.prefetch_batches,
        log=log,
    )


def _sources(order: Order, manifest: Manifest, split: str, epoch: int, start: int, stop: int) -> dict[str, int]:  # noqa: PLR0917
    """The shards that rows [start, stop) of the epoch's sequence come from, and how many each gives."""
    shards = manifest.splits[split].shards
    ends = np.cumsum([shard.rows for shard in shards])
    found, counts = np.unique(
        np.searchsorted(ends, order.row_ids(epoch, start, stop), side="right"), return_counts=True
    )
    return {shards[index].path: int(count) for index, count in zip(found, counts, strict=True)}


def open_rows(
    config: DataConfig,
    manifest: Manifest,
    *,
    table_rows: Moduli,
    device: torch.device,
    split: str,
    batch_rows: int,
    first_row: int = 0,
    limit_rows: int | None = None,
    rank: int = 0,
    ranks: int = 1,
    interrupted: Callable[[], bool] = never,
    retries: ReadRetries | None = None,
) -> Iterator[ModelInputs]:
    """The rows of `split` in file order, each once, in batches of `batch_rows` (the last may be shorter).

    `first_row` begins it later, `limit_rows` ends it early. With several ranks each gets its share of every batch, as
    `RankShare` has it: as many batches on each, some perhaps of no rows, also where damage is to be skipped and leaves
    a batch none at all, which one process would pass over. Threads end with the iterator. On CUDA a
    batch is for the stream that is current where it is asked for, and the host does not wait for its copy. Raises: as
    `open_feed`, when first asked for a batch; InterruptedWaitError once `interrupted` while rows are waited for.
    """
    order = _order(manifest, split, seed=0, shuffle="none", window_groups=1, limit_rows=limit_rows)
    share = RankShare(rank=rank, ranks=ranks)
    stages = StageTotals()
    encode_rows = table_rows if device.type == "cpu" else None
    end = order.rows if limit_rows is None else min(limit_rows, order.rows)

    def wanted(epoch: int, low: int, high: int) -> NDArray[np.int64]:
        starts = np.arange(max(low - first_row, 0) // batch_rows * batch_rows + first_row, min(high, end), batch_rows)
        return united(share.of_each(starts, np.minimum(starts + batch_rows, end)), within=(low, high))

    reader = _reader(
        config,
        manifest,
        split,
        order=order,
        encode_rows=encode_rows,
        share=share,
        wanted=wanted,
        stages=stages,
        retries=retries,
    )
    try:
        uploader = make_uploader(device, table_rows=table_rows, stages=stages, role="evaluation")
        left = first_row >= end
        for start in range(first_row, end, batch_rows):
            batch = reader.read_share(0, start, min(start + batch_rows, end), interrupted=interrupted)
            left = left or batch.rows > 0
            if not batch.rows and ranks == 1:
                continue  # damage left none; of several ranks others may have some, which they must hear of
            inputs = uploader.upload(batch.part)
            hand_over(inputs.tensors(), uploader.mark())
            yield inputs
        if not left:
            raise StorageError(
                f"{manifest.folder}: damage leaves none of the rows {first_row} to {end - 1} of split {split!r} to "
                "evaluate on; `alphastream verify` on the data says which shards to make again"
            )
    finally:
        reader.close()


def _maker(
    config: DataConfig, *, table_rows: Moduli, device: torch.device, stages: StageTotals
) -> Callable[[HostPairs], PairMaker]:
    """What makes device pairs of the host's, by `config.feed`."""
    if config.feed == "dali":
        from pipeline.device import dali

        dali.import_dali()  # if it is missing this raises now, not on the feed's thread
        depth = min(config.prefetch_batches, 2)
        return lambda pairs: dali.DaliPairs(pairs, device=device, table_rows=table_rows, depth=depth, stages=stages)
    return lambda pairs: PairUploader(pairs, make_uploader(device, table_rows=table_rows, stages=stages))


def _held_out(config: DataConfig, manifest: Manifest, split: str) -> RowSelection:
    """The rows of a split that are kept for probing."""
    shards = manifest.splits[split].shards if split in manifest.splits else ()
    group_rows = [rows for shard in shards for rows in shard.row_groups]
    return hold_out(group_rows, share=config.held_out_share, seed=config.seed)


def _probing_order(config: DataConfig, manifest: Manifest, split: str, *, only: RowSelection) -> Order:
    return probing_order(
        [shard.row_groups for shard in manifest.splits[split].shards],
        only,
        seed=config.seed,
        shuffle=config.shuffle,
        window_groups=config.shuffle_row_groups,
    )


def _training_order(config: DataConfig, manifest: Manifest, split: str, *, only: RowSelection | None = None) -> Order:
    """The order in which the rows of a split are trained on, whose shards the cache must be able to hold.

    With `only`, these alone; the windows of the others are then read beside them.
    """
    order = _order(
        manifest, split, seed=config.seed, shuffle=config.shuffle, window_groups=config.shuffle_row_groups, only=only
    )
    check_cache(
        manifest,
        window_groups=order.window_groups * (1 if only is None else 2),
        split=split,
        cache_path=config.cache_path,
        cache_bytes=config.cache_bytes,
    )
    return order


def _order(
    manifest: Manifest,
    split: str,
    *,
    seed: int,
    shuffle: Shuffle,
    window_groups: int,
    limit_rows: int | None = None,
    only: RowSelection | None = None,
) -> Order:
    """The order of a split's rows, or of those of its first shards that hold `limit_rows`."""
    shards = manifest.splits[split].shards if split in manifest.splits else ()
    if limit_rows is not None:
        starts = accumulate((shard.rows for shard in shards), initial=0)
        shards = [shard for shard, start in zip(shards, starts, strict=False) if start < limit_rows]
    order = Order(
        [shard.row_groups for shard in shards], seed=seed, shuffle=shuffle, window_groups=window_groups, only=only
    )
    if order.rows == 0 and only is None:
        raise InputError(f"{manifest.folder} has no rows in split {split!r}; preprocess with a share for it")
    return order


def _reader(
    config: DataConfig,
    manifest: Manifest,
    split: str,
    *,
    order: Order,
    encode_rows: Moduli | None,
    stages: StageTotals,
    retries: ReadRetries | None,
    last_epoch: int | None = None,
    held_out: bool = False,
    share: RankShare | None = None,
    wanted: Callable[[int, int, int], NDArray[np.int64]] | None = None,
) -> RowReader:
    """A reader of `split`; with `encode_rows` it encodes on the host for a table of so many rows."""
    retries = retries or ReadRetries(config.retry_seconds)
    groups = GroupReader(
        open_shards(
            manifest,
            split,
            cache_path=config.cache_path,
            cache_bytes=config.cache_bytes,
            stages=stages,
            retries=retries,
        ),
        manifest.splits[split].shards,
        manifest.format,
        compression=manifest.compression,
        table_rows=encode_rows,
        stages=stages,
        retries=retries,
    )
    return RowReader(
        groups,
        order,
        manifest.format,
        threads=config.reader_threads,
        encoded=encode_rows is not None,
        on_damage=config.damaged,
        last_epoch=last_epoch,
        held_out=held_out,
        share=share,
        wanted=wanted,
        stages=stages,
    )
