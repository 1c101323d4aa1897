"""What the models share: embeddings of all features in one table, and MLPs that are filled later."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from trainer.ranks import ALONE, Ranks, RowsOfRank, ShardedEmbedding

TableRows = int | tuple[int, ...]
"""Rows of the one table that all sparse features share, or of each feature's own."""


def embedding(table_rows: TableRows, width: int, device: torch.device | str, ranks: Ranks = ALONE) -> nn.Embedding:
    """The table that all features share, or those of the features one below the other; not filled yet.

    Of several ranks each has its rows of it.
    """
    rows = table_rows if isinstance(table_rows, int) else sum(table_rows)
    if not ranks.alone:
        return ShardedEmbedding(RowsOfRank(rows=rows, rank=ranks.rank, ranks=ranks.ranks), width, ranks, device=device)
    return cast(nn.Embedding, skip_init(nn.Embedding, rows, width, device=device))


def table_starts(table_rows: TableRows, device: torch.device | str) -> Tensor | None:
    """(S, 1) int32: where each feature's table begins in `embedding`; None where all share one."""
    if isinstance(table_rows, int):
        return None
    return torch.tensor([0, *itertools.accumulate(table_rows)][:-1], dtype=torch.int32, device=device).unsqueeze(1)


def rows_in_one(ids: Tensor, first: Tensor | None) -> Tensor:
    """Rows of `embedding` for ids (S, R), each counted within its own feature's table."""
    return ids if first is None else ids + first


def fill_table(table: nn.Embedding, draw: Callable[[Tensor], Any]) -> None:
    """Fills a table with what `draw` fills its weight with; one that is sharded with its rows of that."""
    if isinstance(table, ShardedEmbedding):
        table.fill(draw)
    else:
        draw(table.weight)


def each_table(table: nn.Embedding, table_rows: TableRows) -> Iterator[tuple[Tensor, int]]:
    """The parts of an `embedding`'s weight (views), a feature's table each, and the rows that this has.

    Of a sharded one, what this rank holds of each.
    """
    place = table.place if isinstance(table, ShardedEmbedding) else RowsOfRank(rows=len(table.weight), rank=0, ranks=1)
    stop = 0
    for rows in [table_rows] if isinstance(table_rows, int) else table_rows:
        start, stop = stop, stop + rows
        yield table.weight[place.before(start) : place.before(stop)], rows


def linears(widths: Sequence[int], device: torch.device | str) -> list[nn.Linear]:
    """Linear layers from each width to the next, not filled yet."""
    return [
        cast(nn.Linear, skip_init(nn.Linear, inputs, outputs, device=device))
        for inputs, outputs in itertools.pairwise(widths)
    ]


def relu_mlp(widths: Sequence[int], device: torch.device | str, *, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers from each width to the next, ReLU after each; at its end a dropout, unless it is 0."""
    layers = nn.Sequential()
    for linear in linears(widths, device):
        layers.extend([linear, nn.ReLU()])
    if dropout:
        layers.append(nn.Dropout(dropout))
    return layers


def linear_modules(layers: nn.Module) -> Iterator[nn.Linear]:
    return (layer for layer in layers.modules() if isinstance(layer, nn.Linear))


@torch.no_grad()
def fill_xavier(linear: nn.Linear, generator: torch.Generator) -> None:
    """Weights U(±√(6/(in + out))) (Glorot and Bengio, 2010), biases 0."""
    bound = math.sqrt(6.0 / (linear.in_features + linear.out_features))
    linear.weight.uniform_(-bound, bound, generator=generator)
    if linear.bias is not None:
        linear.bias.zero_()
