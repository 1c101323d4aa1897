"""Embedding tables of which every rank holds some rows: looked up by exchanging ids and rows, each id once.

Letters: N look-ups of this rank, U different ids among them, G rows that all ranks together ask of this one, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from stepsize.measuring import StandIn
from trainer.ranks.group import Ranks
from trainer.ranks.rows import RowsOfRank


@lru_cache(maxsize=16)
def _bounds(place: RowsOfRank, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(ranks + 1,) where each rank's rows begin and end, with the rows in the order of ranks."""
    return torch.tensor(place.bounds(), dtype=dtype, device=device)


def _in_order_of_ranks(ids: Tensor, place: RowsOfRank, bounds: Tensor) -> Tensor:
    """(N,) the places of rows `ids` where those of rank 0 come first, then rank 1's, …; `rows` for what is no row."""
    within = ids // place.ranks
    found = bounds.index_select(0, ids - within * place.ranks) + within
    return torch.where((ids >= 0) & (ids < place.rows), found, place.rows)


class RowsAcrossRanks:
    """One look-up of `ids` (N,), by every rank of its own: who needs which rows, told once, for any number of reads.

    The host waits for the counts, on CUDA for the device to come this far.
    """

    def __init__(self, ids: Tensor, place: RowsOfRank, ranks: Ranks) -> None:
        self._ranks = ranks
        bounds = _bounds(place, ids.dtype, ids.device)
        wanted, self.places = torch.unique(_in_order_of_ranks(ids.reshape(-1), place, bounds), return_inverse=True)
        asked = torch.searchsorted(wanted, bounds, right=False).diff()
        told = ranks.exchange(asked, give=[1] * ranks.ranks, take=[1] * ranks.ranks, what="counts")
        counts = torch.stack([asked, told]).tolist()
        self.asked: list[int] = counts[0]
        """Rows that this rank asks of each."""
        self.told: list[int] = counts[1]
        """Rows that each rank asks of this one."""
        if sum(self.asked) != len(wanted):
            raise IndexError(f"index out of range: the table has {place.rows:,} rows")
        self.given = ranks.exchange(wanted, give=self.asked, take=self.told, what="ids") - place.bounds()[place.rank]
        """(G,) which of this rank's rows the others want, in the order of ranks."""

    def fetched(self, given: Tensor, *, what: str = "rows") -> Tensor:
        """The rows asked for (U, E), for the rows (G, E) that this rank gives."""
        return self._ranks.exchange(given, give=self.told, take=self.asked, what=what)

    def brought_back(self, gradient: Tensor) -> Tensor:
        """The gradients (G, E) of the rows given, for those (U, E) of the rows fetched."""
        return self._ranks.exchange(gradient, give=self.asked, take=self.told, what="gradients of rows")

    def rows(self, held: Tensor) -> Tensor:
        """The looked up rows (N, E), of a table of which this rank has the rows `held`; no gradient."""
        with torch.no_grad():
            return self.fetched(held.index_select(0, self.given), what="rows for α*").index_select(0, self.places)


class _Fetch(torch.autograd.Function):
    """Rows given to rows fetched; their gradients go the same way back."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, look_up: RowsAcrossRanks) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.look_up = look_up
        return look_up.fetched(given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.look_up.brought_back(gradient), None


class ShardedEmbedding(nn.Embedding):
    """An embedding whose `weight` are this rank's rows; it is called with ids of the whole table, by all ranks at once.

    The gradient of `weight` is the sum over all ranks' look-ups, in the order of ranks. No rank holds the table, nor
    the gradient of it, whole.
    """

    def __init__(self, place: RowsOfRank, width: int, ranks: Ranks, *, device: torch.device | str = "cpu") -> None:
        weight = torch.empty((place.held, width), device=device)
        super().__init__(place.held, width, _weight=weight)
        self.place = place
        # not `ranks` itself: of what a module holds a measurement puts everything back, the counts of bytes too
        self._look_up = partial(RowsAcrossRanks, place=place, ranks=ranks)
        self.weight.look_up_across = self.look_up  # pyright: ignore[reportAttributeAccessIssue]

    def look_up(self, ids: Tensor) -> RowsAcrossRanks:
        """Who needs which rows, for ids (N,) of this rank."""
        return self._look_up(ids)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (*ids.shape, E)."""
        if isinstance(self.weight, StandIn):  # a measurement, which has the rows of its batch already
            return functional.embedding(ids, self.weight)
        look_up = self.look_up(ids)
        given = functional.embedding(look_up.given, self.weight)
        fetched = _Fetch.apply(given, look_up)
        return functional.embedding(look_up.places, fetched).reshape(*ids.shape, self.embedding_dim)

    @torch.no_grad()
    def fill(self, draw: Callable[[Tensor], Any]) -> None:
        """Fills the weight with its rows of what `draw` would fill the whole table with, a piece at a time."""
        ends = [*range(FILLED_ROWS, self.place.rows - LEAST_ROWS + 1, FILLED_ROWS), self.place.rows]
        for start, stop in pairwise([0, *ends]):
            piece = torch.empty((stop - start, self.embedding_dim), dtype=self.weight.dtype)
            draw(piece)
            first, ranks = (self.place.rank - start) % self.place.ranks, self.place.ranks
            self.weight[self.place.before(start) : self.place.before(stop)] = piece[first::ranks].to(self.weight.device)


FILLED_ROWS = 1 << 12
"""Rows that are drawn at a time."""
LEAST_ROWS = 16
"""Torch draws normal numbers in blocks of 16: a piece, but for the last, is a multiple of it, and none is shorter."""


def sharded_tables(model: nn.Module) -> Iterator[tuple[str, ShardedEmbedding]]:
    """The sharded tables of a model, by the names of their weights."""
    for name, module in model.named_modules():
        if isinstance(module, ShardedEmbedding):
            yield f"{name}.weight", module


def held_rows(model: nn.Module) -> dict[str, RowsOfRank]:
    """Which rows of each sharded parameter of `model` this rank holds, by name."""
    return {name: table.place for name, table in sharded_tables(model)}
