"""Pairs and batches of a data folder for a training loop of one's own, with a state to continue from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import torch
from torchdata.nodes import BaseNode

from pipeline.device.config import DataConfig
from pipeline.device.feed import DevicePair, Feed
from pipeline.device.model_inputs import ModelInputs
from pipeline.device.opening import open_feed, open_rows
from pipeline.errors import InputError
from pipeline.rows import Moduli, Pairing, Shuffle
from pipeline.schema import LogFormat
from pipeline.shards import Manifest

Item = TypeVar("Item")
_END = "end_epoch"


class FeedStream(Generic[Item]):
    """What `open_pairs` and `open_batches` give: an iterator over a feed, bounded by epochs.

    As with torchdata's StatefulDataLoader, the state taken after an item continues with the next one, whatever was
    made ahead; a state is loaded before iteration; and after the end another `for` begins anew, with the epochs that
    follow. A `for` that was left goes on where it was. Use it as a context manager, or call `close`: no thread stays.
    """

    def __init__(self, feed: Feed, *, epochs: int | None) -> None:
        self._feed, self._epochs = feed, epochs
        self._end = epochs
        self._ended = False

    @property
    def format(self) -> LogFormat:
        """Of the lines that the data was made of."""
        return self._feed.format

    @property
    def steps_per_epoch(self) -> int:
        """Items of a whole epoch."""
        steps = self._feed.steps_per_epoch
        assert steps is not None, "a log that is followed has no epochs"
        return steps

    @property
    def epoch(self) -> int:
        """The epoch in which the next item begins."""
        return self._feed.position.epoch

    def __iter__(self) -> Iterator[Item]:
        if self._ended and self._epochs is not None:
            self._end, self._ended = self._feed.position.epoch + self._epochs, False
        return self

    def __next__(self) -> Item:
        """The next item.

        Raises: StorageError for damaged data.
        """
        if self._end is not None and self._feed.position.epoch >= self._end:
            self._ended = True
            self._feed.close()
            raise StopIteration
        return self._item(next(self._feed))

    def _item(self, pair: DevicePair) -> Item:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Where the last item ends, as plain numbers."""
        return {**self._feed.state_dict(), _END: self._end, "ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken; the epochs that are left are those that were left then.

        Raises: InputError for what is no such state, or of other data.
        """
        missing = [name for name in ("epoch", "row", "skipped_rows", _END, "ended") if name not in state]
        if missing:
            raise InputError(f"the state lacks {missing[0]!r}; give what state_dict() of such a stream returned")
        self._feed.load_state_dict({name: state[name] for name in ("epoch", "row", "skipped_rows")})
        self._end, self._ended = state[_END], state["ended"]
        if self._epochs is None:
            self._end, self._ended = None, False

    def node(self) -> BaseNode[Item]:
        """This stream as the source of a graph of torchdata.nodes, which then takes its state and ends its threads."""
        return _StreamNode(self)

    def close(self) -> None:
        """Ends the threads; `next` afterwards goes on all the same."""
        self._feed.close()

    def __enter__(self) -> FeedStream[Item]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


class PairStream(FeedStream[DevicePair]):
    """Pairs: train on `b2`, measure α* on `b1`."""

    def _item(self, pair: DevicePair) -> DevicePair:
        return pair

    def __enter__(self) -> PairStream:
        return self


class BatchStream(FeedStream[ModelInputs]):
    """Batches to train on."""

    def _item(self, pair: DevicePair) -> ModelInputs:
        return pair.b2

    def __enter__(self) -> BatchStream:
        return self


class _StreamNode(BaseNode[Item]):
    """A stream under torchdata's protocol of nodes."""

    def __init__(self, stream: FeedStream[Item]) -> None:
        super().__init__()
        self._stream = stream

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        if initial_state is not None:
            self._stream.load_state_dict(initial_state)
        iter(self._stream)

    def next(self) -> Item:
        return next(self._stream)

    def get_state(self) -> dict[str, Any]:
        return self._stream.state_dict()


def open_pairs(
    data: str,
    *,
    table_rows: Moduli,
    batch_rows: int = 2048,
    probe_rows: int | None = None,
    pairing: Pairing = "sliding",
    shuffle: Shuffle = "rows",
    seed: int = 0,
    split: str = "train",
    epochs: int | None = None,
    device: str | torch.device = "cpu",
    rank: int = 0,
    ranks: int = 1,
    prefetch_batches: int = 4,
) -> PairStream:
    """Pairs of batches of the data folder `data` (a path or URI) on `device`, epoch after epoch; without `epochs`
    endlessly.

    A pair's `b2` is the batch to train on and `b1` the probe of that step: dense (R, D) float32, ids (S, R) int32
    below `table_rows` (one number, or one for each sparse column), label (R,) float32, and `weight` (R,) float32 of
    data that has weights, else None. Do not write to them. The last pair of an epoch may be shorter. `batch_rows` is
    over all ranks: every one goes through the same sequence of batches and gets its contiguous share of each, in the
    order of ranks, sizes differing by a row at most (none, of a batch with fewer rows than ranks). The state is the
    same on all ranks, and continues on any number of them. The options are those of `DataConfig`, by the same names.
    Raises: InputError for data or options that cannot be used.
    """
    config = DataConfig(
        path=str(data),
        batch_rows=batch_rows,
        probe_rows=probe_rows,
        pairing=pairing,
        shuffle=shuffle,
        seed=seed,
        prefetch_batches=prefetch_batches,
    )
    return PairStream(_feed(config, table_rows, split, epochs, device, rank, ranks), epochs=epochs)


def open_batches(
    data: str,
    *,
    table_rows: Moduli,
    batch_rows: int = 2048,
    shuffle: Shuffle = "rows",
    seed: int = 0,
    split: str = "train",
    epochs: int | None = None,
    device: str | torch.device = "cpu",
    rank: int = 0,
    ranks: int = 1,
    prefetch_batches: int = 4,
) -> BatchStream:
    """As `open_pairs`, with the batches to train on alone.

    The last batch of an epoch may be shorter. For every row once, in file order, see `open_split`.
    """
    config = DataConfig(
        path=str(data), batch_rows=batch_rows, shuffle=shuffle, seed=seed, prefetch_batches=prefetch_batches
    )
    return BatchStream(_feed(config, table_rows, split, epochs, device, rank, ranks), epochs=epochs)


def open_split(
    data: str,
    *,
    table_rows: Moduli,
    batch_rows: int = 8192,
    split: Literal["train", "validation", "test"] = "validation",
    device: str | torch.device = "cpu",
) -> Iterator[ModelInputs]:
    """Every row of a split once, in file order; the last batch may be shorter. Threads end with the iterator.

    Raises: InputError, as `open_pairs`.
    """
    config = DataConfig(path=str(data), batch_rows=batch_rows)
    manifest, device = _checked(config, table_rows, device)
    if split not in manifest.splits or not manifest.splits[split].rows:
        raise InputError(f"{data}: has no rows in split {split!r}; choose one of {', '.join(manifest.splits)}")
    return open_rows(config, manifest, table_rows=table_rows, device=device, split=split, batch_rows=config.batch_rows)


def _feed(  # noqa: PLR0917
    config: DataConfig,
    table_rows: Moduli,
    split: str,
    epochs: int | None,
    device: str | torch.device,
    rank: int,
    ranks: int,
) -> Feed:
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs = {epochs}; give at least 1, or None for pairs without end")
    if ranks < 1 or not 0 <= rank < ranks:
        raise InputError(f"rank = {rank} of ranks = {ranks}; give a rank from 0 to ranks - 1")
    manifest, device = _checked(config, table_rows, device)
    return open_feed(config, manifest, table_rows=table_rows, device=device, split=split, rank=rank, ranks=ranks)


def _checked(config: DataConfig, table_rows: Moduli, device: str | torch.device) -> tuple[Manifest, torch.device]:
    if min((table_rows,) if isinstance(table_rows, int) else table_rows, default=1) < 1:
        raise InputError(f"table_rows = {table_rows}; give the rows of the embedding table, at least 1")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise InputError(f"device = {device!r}; give cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device = {str(device)!r}, and torch finds no GPU here; give cpu")
    manifest = Manifest.load(config.path)
    if not isinstance(table_rows, int) and len(table_rows) != len(manifest.format.sparse):
        raise InputError(
            f"table_rows has {len(table_rows)} numbers and {config.path} {len(manifest.format.sparse)} sparse columns; "
            "give one each, or one number"
        )
    return manifest, device
