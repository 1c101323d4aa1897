"""The [data] section of a configuration; importing it costs nothing, as `--help` and every configuration need it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, TypeGuard, get_args

from pipeline.errors import InputError
from pipeline.rows import OnDamage, Pairing, Shuffle
from pipeline.stages import usable_cores

FeedKind = Literal["ring", "dali"]

MOST_READER_THREADS = 4
"""Unless more are asked for."""
MOST_HELD_OUT = 0.5
"""Share of the training rows that may be held out."""


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, of Python's or NumPy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The [data] section: which rows are trained on, in which order, and how they reach the device. The last seven are
    rarely set."""

    path: str
    """Folder that `alphastream preprocess` wrote, or a URI (s3://, gs://, hdfs://, file://) of a copy of one;
    here or in the file."""
    batch_rows: int = 2048
    """Rows of a training batch, over all ranks."""
    probe_rows: int | None = None
    """Rows of the batch that α* is measured on; by default as many as batch_rows. With pairing held_out no more than
    are held out."""
    pairing: Pairing = "sliding"
    """sliding: the next training batch probes this step; disjoint: probe rows are not trained on in this pass over the
    data; held_out: some rows are never trained on and probe in turn, so that α* of many steps shows when the model
    overfits rows that are read again; policy auto trains worse by it, though (stepsize/HORIZON.md)."""
    held_out_share: float = 0.05
    """With pairing held_out: share of the training rows that is kept for probing."""
    seed: int = 0
    """Seed of the order of rows."""
    shuffle: Shuffle = "rows"
    """none: file order; files: shards in random order; rows: row groups in random order, then rows within windows."""
    follow: bool = False
    """Whether the log grows: each generation that `preprocess --append` adds is trained on once, in order, shuffled
    within itself, and at the end of the last the next is waited for, without end."""
    follow_idle_seconds: float | None = None
    """With follow: end the run once so many seconds passed without a new generation; 0 trains on those that are there.
    By default it waits for as long as it takes."""
    damaged: OnDamage = "fail"
    """What happens at a damaged row group: fail, or skip its rows (of a remote folder: its shard's) and count them.
    What a disk or network does not give for as long as it is tried is not damaged: the run ends, and can go on."""
    retry_seconds: float = 120.0
    """For how long a read is tried again that fails with an error of disk or network which may pass; 0: not at all."""
    shuffle_row_groups: int = 16
    """Row groups in a window whose rows are shuffled; memory: 10 MB for each of them, four or five times; of several
    ranks each holds its own rows alone."""
    prefetch_batches: int = 4
    """Pairs made ahead of the trainer."""
    read_threads: int | None = None
    """Threads that read, decode and shuffle; by default one for each core that may be used, at most 4."""
    feed: FeedKind = "ring"
    """ring: this project's own feed; dali: NVIDIA DALI (extra `dali`), same batches."""
    follow_poll_seconds: float = 10.0
    """With follow: how often the manifest is looked at for new generations."""
    cache_path: str | None = None
    """Folder for downloaded shards of a remote data.path, used by processes of one machine; by default
    $XDG_CACHE_HOME or ~/.cache, then alphastream."""
    cache_bytes: int | None = None
    """Most bytes of downloaded shards, those of other runs included; by default half of what the disk has free."""

    def __post_init__(self) -> None:
        counts = ("cache_bytes", "batch_rows", "probe_rows", "shuffle_row_groups", "prefetch_batches", "read_threads")
        for name in (*counts, "seed"):
            value = getattr(self, name)
            if value is None and name != "seed":
                continue
            of = "" if name == "seed" else " of at least 1"
            if not is_whole(value) or (of and value < 1):
                raise InputError(f"data.{name} = {value!r}; give a whole number{of}")
            object.__setattr__(self, name, int(value))  # NumPy's would overflow
        for name, least in (("follow_idle_seconds", 0.0), ("follow_poll_seconds", 0.01)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise InputError(f"data.{name} = {value}; give seconds from {least:g} on")
        if not 0 < self.held_out_share <= MOST_HELD_OUT:
            raise InputError(
                f"data.held_out_share = {self.held_out_share}; give a share above 0 and up to {MOST_HELD_OUT}"
            )
        if self.follow and self.pairing == "held_out":
            raise InputError(
                'data.pairing = "held_out" is not for data.follow = true, which reads no row twice; set it to "sliding"'
            )
        if self.follow and self.feed == "dali":
            raise InputError('data.follow = true is not for data.feed = "dali", which cannot wait; set it to "ring"')
        if not 0 <= self.retry_seconds < math.inf:
            raise InputError(f"data.retry_seconds = {self.retry_seconds}; give seconds, or 0 to try nothing again")
        choices = {"pairing": Pairing, "shuffle": Shuffle, "feed": FeedKind, "damaged": OnDamage}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"data.{name} = {getattr(self, name)!r}; choose one of {', '.join(get_args(kind))}")

    @property
    def reader_threads(self) -> int:
        """`read_threads`, or its default here."""
        return self.read_threads or min(usable_cores(), MOST_READER_THREADS)
