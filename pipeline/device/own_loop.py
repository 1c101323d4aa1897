"""Pairs and batches of a data folder for a training loop of one's own, with a state to continue from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from numbers import Integral
from types import TracebackType
from typing import Any, Generic, Literal, NoReturn, TypeVar

import torch
from torchdata.nodes import BaseNode

from pipeline.device.config import DataConfig, is_whole
from pipeline.device.feed import DevicePair, Feed
from pipeline.device.model_inputs import ModelInputs
from pipeline.device.opening import open_feed, open_rows
from pipeline.errors import InputError
from pipeline.rows import Moduli, Pairing, Shuffle
from pipeline.schema import LogFormat
from pipeline.shards import Manifest

Item = TypeVar("Item")
_END = "end_epoch"
_ORDER = "order"
_PLACE = ("epoch", "row", "skipped_rows")


class FeedStream(Generic[Item]):
    """What `open_pairs` and `open_batches` give: an iterator over a feed, bounded by epochs.

    As with torchdata's StatefulDataLoader, the state taken after an item continues with the next one, whatever was
    made ahead; a state is loaded before iteration; and after the end another `for` begins anew, with the epochs that
    follow. A `for` that was left goes on where it was. Use it as a context manager, or call `close`: no thread stays.
    It has threads, so a process that is forked or spawned opens one of its own.
    """

    def __init__(self, feed: Feed, *, epochs: int | None, order: Mapping[str, Any]) -> None:
        """`order`: what the sequence of rows depends on, by the names of the options."""
        self._feed, self._epochs, self._order = feed, epochs, dict(order)
        self._end = epochs
        self._ended = False
        self._process: int | None = None

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

        Raises: StorageError for damaged data; InputError in a process that was forked after the first.
        """
        if self._process not in (None, os.getpid()):
            raise InputError("a stream that was begun does not go on in a forked process; open one there")
        self._process = os.getpid()
        if self._end is not None and self._feed.position.epoch >= self._end:
            self._ended = True
            self._feed.close()
            raise StopIteration
        return self._item(next(self._feed))

    def _item(self, pair: DevicePair) -> Item:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Where the last item ends, and in which order of rows, as JSON values."""
        return {**self._feed.state_dict(), _END: self._end, "ended": self._ended, _ORDER: dict(self._order)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken; the epochs that are left are those that were left then.

        Raises: InputError for what is no such state, or of rows in another order: of other data, or another seed.
        """
        given = "give what state_dict() of such a stream returned"
        if not isinstance(state, Mapping):
            raise InputError(f"the state is a {type(state).__name__}; {given}")
        if missing := [name for name in (*_PLACE, _END, "ended") if name not in state]:
            raise InputError(f"the state lacks {missing[0]!r}; {given}")
        for name in (*_PLACE, *([] if state[_END] is None else [_END])):
            if not is_whole(state[name]):
                raise InputError(f"the state has {name} = {state[name]!r}; {given}")
        order = state.get(_ORDER, {})  # states of earlier versions lack it
        if not isinstance(order, Mapping) or not all(isinstance(value, str | Integral) for value in order.values()):
            raise InputError(f"the state has {_ORDER} = {order!r}; {given}")
        for name, value in order.items():
            if value != self._order.get(name):
                raise InputError(
                    f"the state is of {name} = {value!r}, and this stream of {self._order.get(name)!r}, which has its "
                    "rows in another order; continue with what it was taken of"
                )
        self._feed.load_state_dict({name: state[name] for name in _PLACE})
        self._end, self._ended = state[_END], state["ended"]
        if self._epochs is None:
            self._end, self._ended = None, False

    def node(self) -> BaseNode[Item]:
        """This stream as the source of a graph of torchdata.nodes, which then takes its state and ends its threads."""
        return _StreamNode(self)

    def __reduce__(self) -> NoReturn:
        """Raises: TypeError, as there are threads in it."""
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied; open one in each process, with rank and ranks where "
            "they share the rows"
        )

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
    return PairStream(**_opened(config, table_rows, split, epochs, device, rank, ranks))


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
    return BatchStream(**_opened(config, table_rows, split, epochs, device, rank, ranks))


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
    manifest, table_rows, device = _checked(config, table_rows, device)
    if split not in manifest.splits or not manifest.splits[split].rows:
        raise InputError(f"{data}: has no rows in split {split!r}; choose one of {', '.join(manifest.splits)}")
    return open_rows(config, manifest, table_rows=table_rows, device=device, split=split, batch_rows=config.batch_rows)


def _opened(  # noqa: PLR0917
    config: DataConfig,
    table_rows: Moduli,
    split: str,
    epochs: int | None,
    device: str | torch.device,
    rank: int,
    ranks: int,
) -> dict[str, Any]:
    """What a stream is made of."""
    if epochs is not None and not (is_whole(epochs) and epochs >= 1):
        raise InputError(f"epochs = {epochs!r}; give a whole number of at least 1, or None for pairs without end")
    if not (is_whole(rank) and is_whole(ranks) and 0 <= rank < ranks):
        raise InputError(f"rank = {rank!r} of ranks = {ranks!r}; give a rank from 0 to ranks - 1")
    manifest, table_rows, device = _checked(config, table_rows, device)
    feed = open_feed(config, manifest, table_rows=table_rows, device=device, split=split, rank=rank, ranks=ranks)
    shards = "".join(shard.sha256 for shard in manifest.splits[split].shards)
    order = {
        "split": split,
        "shards": hashlib.sha256(shards.encode()).hexdigest(),
        "shuffle": config.shuffle,
        "seed": int(config.seed),
        "held_out": config.pairing == "held_out",
    }
    return {"feed": feed, "epochs": epochs, "order": order}


def _checked(
    config: DataConfig, table_rows: Moduli, device: str | torch.device
) -> tuple[Manifest, Moduli, torch.device]:
    """The manifest, and both others as they are used."""
    each: Any = (table_rows,) if isinstance(table_rows, Integral) else table_rows
    if not isinstance(each, tuple | list) or not all(is_whole(rows) and 1 <= rows < 2**31 for rows in each):
        raise InputError(
            f"table_rows = {table_rows!r}; give the rows of the embedding table, a whole number from 1 to 2³¹ − 1, or "
            "one for each sparse column"
        )
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"device = {str(device)!r}; give cpu or cuda")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device = {str(device)!r}, and torch finds {torch.cuda.device_count()} GPUs here; give cpu")
    manifest = Manifest.load(config.path)
    if isinstance(table_rows, Integral):
        return manifest, int(table_rows), found
    if len(each) != len(manifest.format.sparse):
        raise InputError(
            f"table_rows has {len(each)} numbers and {config.path} {len(manifest.format.sparse)} sparse columns; "
            "give one each, or one number"
        )
    return manifest, tuple(map(int, each)), found
