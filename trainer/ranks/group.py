"""The processes of a run, as torchrun starts them, and what they say to one another.

Two groups: `data` moves what lies where the model lies (NCCL on CUDA, else gloo), `control` small numbers from host to
host (gloo), so that an agreement waits for no device; checkpoints, which other threads write, have a third.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Thread
from time import monotonic, sleep
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import InputError, StorageError
from pipeline.rows import RankShare
from trainer.ranks.attempt import attempt_store
from trainer.ranks.config import RanksConfig, ranks_asked

Value = TypeVar("Value")

RANK, LOCAL_RANK = "RANK", "LOCAL_RANK"
"""Environment variables of torchrun."""
FAILED = "failed"
FAILED_INPUT = "input"
"""What a rank that fails by an InputError leaves with its word."""
WORD_SECONDS, LOOK_SECONDS = 2.0, 0.05
"""So long a rank that has lost another one looks for a word of it, and so often."""


class RanksLostError(StorageError):
    """Another rank does not answer any more."""


class RankRefusedError(InputError):
    """Another rank has ended for what the user gave, which nobody's trying again mends."""


class OtherRowsError(StorageError):
    """Ranks are at other rows than one another: where damaged ones are left out, what one cannot read others might."""

    def __init__(self, told: str) -> None:
        super().__init__(
            f"ranks have read other rows than one another ({told}): the data of one is damaged where that of another "
            "is not; run `alphastream verify` on the data of each machine"
        )


@dataclass(kw_only=True, eq=False)
class Ranks:
    """This process among those that train a run. Alone, it says nothing to nobody.

    All methods but `say_failed` and `for_saves` are collective: every rank calls them, in the same order.
    """

    rank: int = 0
    ranks: int = 1
    data: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    saves: dist.ProcessGroup | None = None
    store: Any = None
    """Where a rank that fails leaves word of it for the others."""
    timeout_seconds: float = 0.0
    step: int | None = None
    """The one at hand, to be named in errors."""
    batch: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)
    """Of the latest step: rows of this rank's share of B2 and of all of it, the same of B1, and the epoch and row where
    B2 ended."""
    sent_bytes: Counter[str] = field(default_factory=Counter)
    """That this rank has sent to others, by what it was for."""
    timed: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around whatever takes until other ranks have answered, saves left aside; in whichever thread that is."""

    @property
    def alone(self) -> bool:
        return self.ranks == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that talks, serves and writes what is not sharded."""
        return self.rank == 0

    def sum(self, tensor: Tensor, *, what: str) -> Tensor:
        """`tensor`, where the model lies, with every rank's added up in place; the same bits on all."""
        if self.alone:
            return tensor
        # a ring passes each part around twice, but for the part where it begins and ends
        self.sent_bytes[what] += 2 * (self.ranks - 1) * tensor.nbytes // self.ranks
        with self._talk(what):
            dist.all_reduce(tensor, group=self.data)
        return tensor

    def exchange(self, given: Tensor, *, give: Sequence[int], take: Sequence[int], what: str) -> Tensor:
        """`give[r]` rows of `given` to each rank r in turn, and `take[r]` rows from it, in the order of ranks."""
        taken = given.new_empty((sum(take), *given.shape[1:]))
        row_bytes = given.element_size() * math.prod(given.shape[1:])
        self.sent_bytes[what] += (sum(give) - give[self.rank]) * row_bytes
        with self._talk(what):
            dist.all_to_all_single(taken, given.contiguous(), list(take), list(give), group=self.data)
        return taken

    def whole_batch(self, logits: Tensor, label: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits, labels and weights (R,) of a batch of which each rank has a share, in the order of rows.

        Raises: OtherRowsError, on all ranks alike, if these are not the shares of one batch.
        """
        if self.alone:
            return logits, label, weight
        rows = [int(told[0]) for told in self.gather([len(label)], what="evaluation")]
        parts = (RankShare(rank=rank, ranks=self.ranks).of(sum(rows)) for rank in range(self.ranks))
        shares = [stop - start for start, stop in parts]
        if rows != shares:
            raise OtherRowsError(f"shares of {rows} rows, not {shares}")
        if not sum(rows):
            return logits, label, weight
        given = [logits.detach(), label, *([] if weight is None else [weight])]
        exact = torch.promote_types(logits.dtype, torch.float32)  # of weights, too
        own = torch.zeros((len(given), max(rows)), dtype=exact, device=logits.device)
        own[:, : len(label)] = torch.stack([one.to(exact) for one in given])
        everyone = [torch.empty_like(own) for _ in rows]
        self.sent_bytes["evaluation"] += (self.ranks - 1) * own.nbytes
        with self._talk("evaluation"):
            dist.all_gather(everyone, own, group=self.data)
        whole = torch.cat([found[:, :count] for found, count in zip(everyone, rows, strict=True)], dim=1)
        return (
            whole[0].to(logits.dtype),
            whole[1].to(label.dtype),
            None if weight is None else whole[2].to(weight.dtype),
        )

    def gather(self, numbers: Sequence[float], *, what: str = "control") -> list[list[float]]:
        """Every rank's numbers, as many on each, in the order of ranks; float64, from host to host."""
        if self.alone:
            return [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.float64)
        everyone = [torch.empty_like(own) for _ in range(self.ranks)]
        self.sent_bytes[what] += (self.ranks - 1) * own.nbytes
        with self._talk(what):
            dist.all_gather(everyone, own, group=self.control)
        return [values.tolist() for values in everyone]

    def told_by_first(self, value: Any) -> Any:
        """What rank 0 has, as JSON values, on every rank."""
        return self.gather_values(value)[0]

    def gather_values(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in the order of ranks; from host to host."""
        return [value] if self.alone else gather_values(self.control, value, contact=self._talk("control"))

    def say_failed(self, error: BaseException) -> None:
        """Leaves word for the others of what ends this rank; not collective."""
        if self.store is None or isinstance(error, RanksLostError | RankRefusedError):
            return
        match error:
            case KeyboardInterrupt():
                text = "a signal ended it at once"
            case InputError() | OSError():
                text = str(error)
            case _:
                text = f"{type(error).__name__}: {error}"
        kind = FAILED_INPUT if isinstance(error, InputError) else ""
        word = json.dumps([self.rank, kind, " ".join(text.split())])
        _within(WORD_SECONDS, lambda: self.store.set(FAILED, word))

    def _failure_told(self) -> RanksLostError | RankRefusedError | None:
        """What another rank has left word of, if one has by now or does soon."""
        if self.store is None:
            return None
        word = _within(WORD_SECONDS, self._word)
        if word is None or word[0] == self.rank:
            return None
        rank, kind, text = word
        told = f"rank {rank} has stopped: {text}"
        return RankRefusedError(told) if kind == FAILED_INPUT else RanksLostError(told)

    def _word(self) -> tuple[int, str, str] | None:
        """What `say_failed` has left: the rank, the kind of error and the text; None if there is nothing in time."""
        end = monotonic() + WORD_SECONDS
        while not self.store.check([FAILED]):  # a wait that ends without it would be told of by torch
            if monotonic() > end:
                return None
            sleep(LOOK_SECONDS)
        return json.loads(self.store.get(FAILED))

    def for_saves(self) -> SaveRanks:
        """The same ranks for the thread that saves."""
        return SaveRanks(whole=self)

    @contextmanager
    def _talk(self, what: str) -> Iterator[None]:
        """`_contact`, timed."""
        with self.timed(), self._contact(what):
            yield

    @contextmanager
    def _contact(self, what: str) -> Iterator[None]:
        """Within it the loss of another rank becomes an error that says where it was noticed."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            at = "" if self.step is None else f" at step {self.step:,}"
            first = (str(error).splitlines() or [""])[0][:200]
            if (told := self._failure_told()) is not None:
                raise told from error
            raise RanksLostError(
                f"rank {self.rank} of {self.ranks}{at} ({what}): another rank has ended or has not answered within "
                f"{self.timeout_seconds:g} s ({first}); see what that one says; the same command goes on from the "
                "newest checkpoint"
            ) from error


def _within(seconds: float, act: Callable[[], Value]) -> Value | None:
    """What `act` returns; None if it fails or takes longer, as a store does for minutes that a broken network hides."""
    found: list[Value] = []

    def work() -> None:
        with suppress(RuntimeError):
            found.append(act())

    thread = Thread(target=work, name="alphastream-word-of-ranks", daemon=True)
    thread.start()
    thread.join(seconds + LOOK_SECONDS)
    return found[0] if found else None


ALONE = Ranks()
"""One process, as ever."""


@dataclass(frozen=True, kw_only=True)
class SaveRanks:
    """What the ranks say to one another about a checkpoint, from whichever thread writes it."""

    whole: Ranks

    @property
    def rank(self) -> int:
        return self.whole.rank

    @property
    def ranks(self) -> int:
        return self.whole.ranks

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in the order of ranks."""
        if self.whole.alone:
            return [value]
        return gather_values(self.whole.saves, value, contact=self.whole._contact("checkpoint"))


def gather_values(group: dist.ProcessGroup | None, value: Any, *, contact: Any) -> list[Any]:
    """JSON values of all of `group`: their lengths first, then as many bytes as the longest has."""
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    with contact:
        size = dist.get_world_size(group)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
        dist.all_gather(lengths, torch.tensor([len(own)]), group=group)
        longest = int(max(length.item() for length in lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(own)] = own
        everyone = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(everyone, padded, group=group)
    return [
        json.loads(bytes(found[: int(length.item())].tolist())) for found, length in zip(everyone, lengths, strict=True)
    ]


@contextmanager
def open_ranks(config: RanksConfig = RanksConfig()) -> Iterator[Ranks]:  # noqa: B008 (frozen)
    """This process's place among those that torchrun has started; alone if it has started one, or none.

    Raises: InputError for more ranks of a machine than it has GPUs, if it has one; RanksLostError if the others do not
    come.
    """
    if ranks_asked() == 1:
        yield Ranks()
        return
    rank, local = int(os.environ[RANK]), int(os.environ.get(LOCAL_RANK, "0"))
    cuda = torch.cuda.is_available()
    if cuda:
        if local >= torch.cuda.device_count():
            raise InputError(
                f"rank {rank} is number {local + 1} of this machine, which has {torch.cuda.device_count()} GPUs; start "
                "as many ranks a machine as it has"
            )
        torch.cuda.set_device(local)
    limit, save_limit = timedelta(seconds=config.timeout_seconds), timedelta(seconds=config.save_timeout_seconds)
    end = monotonic() + config.timeout_seconds
    ranks = Ranks(rank=rank, ranks=ranks_asked(), timeout_seconds=config.timeout_seconds)
    with ranks._contact("start"):
        kept, _, _ = next(rendezvous("env://", timeout=limit))
        store = attempt_store(kept, rank=rank, ranks=ranks.ranks, seconds=end - monotonic())
        ranks.store = PrefixStore("alphastream", store)
        backend = "nccl" if cuda else "gloo"
        groups = PrefixStore("groups", store)
        dist.init_process_group(backend, store=groups, rank=rank, world_size=ranks.ranks, timeout=limit)
        ranks.data = dist.group.WORLD
        ranks.control = cast(Any, dist.new_group(backend="gloo", timeout=limit))
        ranks.saves = cast(Any, dist.new_group(backend="gloo", timeout=save_limit))
    try:
        yield ranks
    except BaseException as error:
        ranks.say_failed(error)
        raise
    dist.destroy_process_group()
