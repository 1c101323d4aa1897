"""Embedding tables read row by row: stand-ins that record a pass's look-ups and later replay them along a direction.

A stand-in takes the table's place in the model for one pass. It answers `F.embedding` and `F.embedding_bag` and
refuses every other use, so a table that is also read as a whole is noticed, never measured wrongly.
Letters: N look-ups, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.autograd.forward_ad as fw
from torch import Tensor, nn
from torch.nn import functional

from stepsize.errors import MeasurementError
from stepsize.measuring import handoff


class ReadAsAWholeError(MeasurementError):
    """A table recorded row by row was read by something that is no look-up; `table` is its name."""

    def __init__(self, table: str, reader: str) -> None:
        super().__init__(
            f"table {table!r} is read as a whole by {reader}, which its first pass did not do; "
            'build the worker with tables="dense"'
        )
        self.table = table


class EveryTableRead(BaseException):
    """Ends a recording pass once nothing is left to record; not an Exception, so that no model can swallow it."""


class RowsAcross(Protocol):
    """One look-up of a table whose rows several processes hold between them."""

    def rows(self, held: Tensor) -> Tensor:
        """The looked up rows (N, E), of a table of which this process has the rows `held`. All processes call it."""
        ...


LookUpAcross = Callable[[Tensor], RowsAcross]
"""From ids (N,) of the whole table to their look-up. All processes call it, each with its own ids."""


def across(parameter: Tensor) -> LookUpAcross | None:
    """How rows of a table are looked up of which this process holds some only: the attribute `look_up_across`."""
    return getattr(parameter, "look_up_across", None)


@dataclass(kw_only=True)
class Lookup:
    """One look-up of N rows: at θ0, and once the optimizer has stepped, what the step changed in them.

    With `places` (N,) every row is kept once, in any order: row i of the look-up is row places[i] of those.
    """

    ids: Tensor
    before: Tensor
    difference: Tensor | None = None
    places: Tensor | None = None
    overflow: Tensor | None = None
    """Whether there were more different rows than room for them, a truth value on the device."""
    across: RowsAcross | None = None
    """Where the rows are those of several processes."""

    def read(self, held: Tensor) -> Tensor:
        """The rows as they are in `held`, the table or this process's rows of it, in memory of their own."""
        return held.index_select(0, self.ids) if self.across is None else self.across.rows(held)

    def looked_up(self) -> Tensor:
        """The N ids."""
        return self.ids if self.places is None else self.ids.index_select(0, self.places)

    def rows(self, *, moving: bool) -> Tensor:
        """The N rows, dual where they are `moving`."""
        before, change = self.before, self.difference if moving else None
        if self.places is not None:
            before = before.index_select(0, self.places)
            change = None if change is None else change.index_select(0, self.places)
        return before if change is None else fw.make_dual(before, change)

    def tensors(self) -> list[Tensor]:
        """All that is held beside θ0 and d."""
        return [value for value in (self.ids, self.places, self.overflow) if value is not None]


def different_rows(ids: Tensor, *, table_rows: int, room: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The different ids, where each of `ids` is among them, and whether there are more than `room`.

    On a device their number is not known without waiting for it: there are always `room` then, filled up with 0.
    """
    if handoff.host_sees(ids):
        found, places = torch.unique(ids, return_inverse=True)
        return found, places, None
    present = torch.zeros(table_rows, dtype=torch.bool, device=ids.device).index_fill_(0, ids, True)
    place_of = present.cumsum(0) - 1
    places = place_of.index_select(0, ids).clamp(max=room - 1)
    return ids.new_zeros(room).scatter_(0, places, ids), places, place_of[-1] >= room


OVERFLOW = "no room in "
"""Begins the name of what tells whether each look-up of one table, which follows, had too many different rows."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How a table is kept by rows."""

    lookups: int
    """In one pass."""
    room: int | None
    """For how many different rows of each look-up; None: as many as there are look-ups of rows."""


def way_of_keeping(calls: list[Lookup], *, rows: int | None) -> Kept | None:
    """How a table of so many rows is kept that one pass looked up so; None for whole. The host may wait here.

    `rows` is None for a table of several processes, which they keep in one way, however many rows each looks up.
    """
    if rows is None or sum(call.ids.numel() for call in calls) < rows:
        return Kept(lookups=len(calls), room=None)
    room = 2 * max(call.ids.unique().numel() for call in calls)
    return Kept(lookups=len(calls), room=room) if len(calls) * room <= rows else None


def dense_gradient(gradient: Tensor) -> Tensor:
    """A sparse gradient of rows as a whole; on a device without waiting for how many different rows there are."""
    if handoff.host_sees(gradient) or gradient.sparse_dim() != 1:
        return gradient.to_dense()
    return gradient.new_zeros(gradient.shape, layout=torch.strided).index_add_(
        0, gradient._indices()[0], gradient._values()
    )


class Reader(Protocol):
    """Answers look-ups in a table's place: N ids to (N, E) rows, dual tensors where a direction is known."""

    def rows(self, ids: Tensor) -> Tensor: ...


@dataclass
class Recorder:
    """Reads the rows from the table itself and remembers them in the order of the look-ups."""

    weight: Tensor
    calls: list[Lookup]
    after_each: Callable[[], None]
    """Called once a look-up is recorded; may raise EveryTableRead."""
    room: int | None = None
    """For how many different rows there is room in each look-up; None: every look-up of a row is kept."""
    look_up: LookUpAcross | None = None
    """Where `weight` are this process's rows of the table."""

    def rows(self, ids: Tensor) -> Tensor:
        if self.look_up is not None:
            found = self.look_up(ids)
            call = Lookup(ids=ids.clone(), before=found.rows(self.weight), across=found)
        elif self.room is None:
            call = Lookup(ids=ids.clone(), before=self.weight.index_select(0, ids))
        else:
            kept, places, overflow = different_rows(ids, table_rows=len(self.weight), room=self.room)
            call = Lookup(ids=kept, before=self.weight.index_select(0, kept), places=places, overflow=overflow)
        self.calls.append(call)
        self.after_each()
        return call.rows(moving=False)


@dataclass
class Replayer:
    """Gives back the recorded rows at θ0, with what the step changed in them as their tangents.

    Raises: MeasurementError where other rows are looked up. Where the host cannot see the ids without waiting for a
    device, `differing` notes it instead, a truth value a look-up, for all passes that share the list.
    """

    table: str
    calls: list[Lookup]
    moving: bool = True
    differing: list[Tensor] = field(default_factory=list)
    position: int = 0

    def rows(self, ids: Tensor) -> Tensor:
        if self.position >= len(self.calls):
            raise looks_up_others(self.table, self.position)
        call = self.calls[self.position]
        before = call.looked_up()
        if before.shape != ids.shape:
            raise looks_up_others(self.table, self.position)
        if not handoff.host_sees(ids):
            self._note((before != ids).any())
        elif not torch.equal(before, ids):
            raise looks_up_others(self.table, self.position)
        self.position += 1
        return call.rows(moving=self.moving)

    def _note(self, differs: Tensor) -> None:
        if self.position < len(self.differing):
            self.differing[self.position] = self.differing[self.position] | differs
        else:
            self.differing.append(differs)


def looks_up_others(table: str, position: int) -> MeasurementError:
    """What to raise where the look-up at that position of a pass is not the one that was recorded."""
    return MeasurementError(
        f"table {table!r}: look-up {position} differs from the one before the step; a model whose look-ups change "
        'from pass to pass needs tables="dense"'
    )


@dataclass
class Whole:
    """A whole table, dual where it moves: what a look-up needs where the table is kept densely."""

    weight: Tensor

    def rows(self, ids: Tensor) -> Tensor:
        return self.weight.index_select(0, ids)


class StandIn(torch.Tensor):
    """Takes a table's place in a model for one pass: its shape, dtype and device, but none of its memory."""

    table: str
    reader: Reader

    @staticmethod
    def __new__(cls, table: str, like: Tensor, reader: Reader) -> StandIn:
        made = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
        made.table, made.reader = table, reader
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.embedding:
            return _embedding(*args, **kwargs)
        if func is functional.embedding_bag:
            return _embedding_bag(*args, **kwargs)
        if func in METADATA:
            return super().__torch_function__(func, types, args, kwargs)
        standing_in = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, cls)]
        whole = [arg for arg in standing_in if isinstance(arg.reader, Whole)]
        if not standing_in or len(whole) < len(standing_in):
            name = next((arg.table for arg in standing_in), "of the model")
            raise ReadAsAWholeError(name, getattr(func, "__name__", str(func)))
        return func(*map(_opened, args), **{key: _opened(value) for key, value in kwargs.items()})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ReadAsAWholeError("of the model", str(func))


METADATA = {
    torch.Tensor.dim,
    torch.Tensor.size,
    torch.Tensor.numel,
    torch.Tensor.is_floating_point,
    *(
        getattr(torch.Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_sparse")
    ),
}
"""What may be asked of a parameter without reading its values."""


def _opened(value: Any) -> Any:
    return value.reader.weight if isinstance(value, StandIn) and isinstance(value.reader, Whole) else value


def _embedding(  # noqa: PLR0917 (the signature of functional.embedding)
    ids: Tensor,
    table: StandIn,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`F.embedding`: the options left aside shape the backward pass only."""
    _refuse_max_norm(table, max_norm)
    return table.reader.rows(ids.reshape(-1)).reshape(*ids.shape, table.shape[1])


def _embedding_bag(  # noqa: PLR0917 (the signature of functional.embedding_bag)
    ids: Tensor,
    table: StandIn,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """`F.embedding_bag` by sum or mean: linear in the rows, so the bag of the tangents is the tangent of the bag.

    Raises: MeasurementError for `max`, which has no forward-mode formula.
    """
    _refuse_max_norm(table, max_norm)
    if mode == "max":
        raise MeasurementError(
            f'table {table.table!r}: an EmbeddingBag of mode "max" cannot be measured; use sum or mean'
        )
    rows, row_tangents = fw.unpack_dual(table.reader.rows(ids.reshape(-1)))
    weights, weight_tangents = (None, None) if per_sample_weights is None else fw.unpack_dual(per_sample_weights)
    positions = torch.arange(ids.numel(), device=ids.device).reshape(ids.shape)
    if padding_idx is not None:
        padding_idx = padding_idx % table.shape[0]
        positions = torch.where(ids == padding_idx, ids.numel(), positions)

    def bag(rows: Tensor, weights: Tensor | None) -> Tensor:
        padded = rows if padding_idx is None else torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        return functional.embedding_bag(
            positions,
            padded,
            offsets,
            mode=mode,
            per_sample_weights=weights,
            include_last_offset=include_last_offset,
            padding_idx=None if padding_idx is None else ids.numel(),
        )

    tangents = []
    if row_tangents is not None:
        tangents.append(bag(row_tangents, weights))
    if weight_tangents is not None:
        tangents.append(bag(rows, weight_tangents))
    pooled = bag(rows, weights)
    return fw.make_dual(pooled, sum(tangents[1:], tangents[0])) if tangents else pooled


def refuse_max_norm(model: nn.Module) -> None:
    """Raises MeasurementError for a model with tables that rewrite rows while these are looked up."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise _max_norm(name)


def _refuse_max_norm(table: StandIn, max_norm: float | None) -> None:
    if max_norm is not None:
        raise _max_norm(table.table)


def _max_norm(table: str) -> MeasurementError:
    return MeasurementError(
        f"table {table!r}: max_norm rewrites rows while they are looked up; clip them after the step instead"
    )
