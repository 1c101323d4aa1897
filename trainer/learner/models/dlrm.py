"""DLRM with one shared embedding table, as AlgoPerf's Criteo workload defines it, or a table for each feature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.learner.models.layers import (
    TableRows,
    each_table,
    embedding,
    fill_table,
    linear_modules,
    linears,
    relu_mlp,
    rows_in_one,
    table_starts,
)
from trainer.ranks import ALONE, Ranks


class DLRM(nn.Module):
    """Dense features through an MLP, sparse ones through one table, all dot products, an MLP on top.

    R rows, D dense features, S sparse features, E embedding width, F = S + 1 vectors that interact
    (F = S when D = 0: no bottom MLP then). The top MLP reads the bottom output and the upper triangle,
    diagonal included and in row-major order, of the F × F dot products.
    Every operation has a forward-mode derivative.
    """

    def __init__(
        self,
        *,
        dense_features: int,
        sparse_features: int,
        table_rows: TableRows,
        embedding_dim: int,
        bottom: Sequence[int],
        top: Sequence[int],
        dropout: float = 0.0,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.dense_features, self.sparse_features = dense_features, sparse_features
        self.table_rows = table_rows
        self.table = embedding(table_rows, embedding_dim, device, ranks)
        self.first_row: Tensor | None
        self.register_buffer("first_row", table_starts(table_rows, device), persistent=False)
        self.bottom = relu_mlp((dense_features, *bottom) if dense_features else (), device)
        vectors = sparse_features + (1 if dense_features else 0)
        features = vectors * (vectors + 1) // 2 + (embedding_dim if dense_features else 0)
        self.top = relu_mlp((features, *top[:-1]), device, dropout=dropout)
        self.top.extend(linears((features, *top)[-2:], device))
        row, column = torch.triu_indices(vectors, vectors)
        self.triangle: Tensor
        self.register_buffer("triangle", row * vectors + column, persistent=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits (R,) of float `dense` (R, D) and integer table rows `ids` (S, R)."""
        vectors_SRE = self.table(rows_in_one(ids, self.first_row))
        bottom_RE = self.bottom(dense) if self.dense_features else None
        if bottom_RE is not None:
            vectors_SRE = torch.cat([bottom_RE.unsqueeze(0), vectors_SRE])
        vectors_RFE = vectors_SRE.transpose(0, 1)
        products_RFF = torch.bmm(vectors_RFE, vectors_RFE.transpose(1, 2))
        features = products_RFF.flatten(1).index_select(1, self.triangle)
        if bottom_RE is not None:
            features = torch.cat([bottom_RE, features], dim=1)
        return self.top(features).squeeze(1)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Fill every parameter from `generator` as AlgoPerf does.

        Table U(0, 1)/√rows (of each table's own rows); bottom weights U(±√(6/(in + out))); top weights
        N(0, 2/(in + out)); all biases N(0, 1/out), where N's second argument is a variance.
        """
        fill_table(self.table, lambda part: part.uniform_(0.0, 1.0, generator=generator))
        for part, rows in each_table(self.table, self.table_rows):
            part.div_(math.sqrt(rows))
        for linear in linear_modules(self.bottom):
            bound = math.sqrt(6.0 / (linear.in_features + linear.out_features))
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.normal_(0.0, math.sqrt(1.0 / linear.out_features), generator=generator)
        for linear in linear_modules(self.top):
            deviation = math.sqrt(2.0 / (linear.in_features + linear.out_features))
            linear.weight.normal_(0.0, deviation, generator=generator)
            linear.bias.normal_(0.0, math.sqrt(1.0 / linear.out_features), generator=generator)
