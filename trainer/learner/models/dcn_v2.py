"""DCN v2: cross layers with a full matrix each, and an MLP (Wang et al., WWW 2021, arXiv:2008.13535)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.learner.models.layers import (
    TableRows,
    embedding,
    fill_table,
    fill_xavier,
    linear_modules,
    linears,
    relu_mlp,
    rows_in_one,
    table_starts,
)
from trainer.ranks import ALONE, Ranks


class DCNv2(nn.Module):
    """x₀ = (embeddings, dense features); cross layers xₗ₊₁ = x₀ ⊙ (Wₗ xₗ + bₗ) + xₗ; an MLP; one logit.

    R rows, D dense features, S sparse features, E embedding width, X = S·E + D the width of x₀.
    `structure` "stacked": the MLP reads the last cross layer, the logit the MLP. "parallel": the MLP reads x₀, the
    logit both. `low_rank` K: Wₗ = Uₗ Vₗᵀ of X × K matrices (formula 2 there, of one expert); None: a full X × X matrix.
    The MLP's widths are those of `top` without its last, which is the logit.
    """

    def __init__(
        self,
        *,
        dense_features: int,
        sparse_features: int,
        table_rows: TableRows,
        embedding_dim: int,
        top: Sequence[int],
        dropout: float = 0.0,
        cross_layers: int = 3,
        structure: Literal["stacked", "parallel"] = "stacked",
        low_rank: int | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        if not isinstance(cross_layers, int) or cross_layers < 1:
            raise ValueError(f"cross_layers is {cross_layers!r}; give 1 or more")
        if structure not in ("stacked", "parallel"):
            raise ValueError(f"structure is {structure!r}; give 'stacked' or 'parallel'")
        width = sparse_features * embedding_dim + dense_features
        if low_rank is not None and not (isinstance(low_rank, int) and low_rank >= 1):
            raise ValueError(f"low_rank is {low_rank!r}; give 1 or more, or leave it out for full matrices")
        self.parallel = structure == "parallel"
        self.table = embedding(table_rows, embedding_dim, device, ranks)
        self.first_row: Tensor | None
        self.register_buffer("first_row", table_starts(table_rows, device), persistent=False)
        self.cross = nn.ModuleList()
        for _ in range(cross_layers):
            if low_rank is None:
                (layer,) = linears((width, width), device)
            else:
                down, up = linears((width, low_rank, width), device)
                down.register_parameter("bias", None)
                layer = nn.Sequential(down, up)
            self.cross.append(layer)
        *hidden, outputs = top
        self.deep = relu_mlp((width, *hidden), device, dropout=dropout)
        deep = hidden[-1] if hidden else width
        (self.logit,) = linears((width + deep if self.parallel else deep, outputs), device)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits (R,) of float `dense` (R, D) and integer table rows `ids` (S, R)."""
        vectors_SRE = self.table(rows_in_one(ids, self.first_row))
        x0_RX = torch.cat([vectors_SRE.transpose(0, 1).flatten(1), dense], dim=1)
        x_RX = x0_RX
        for layer in self.cross:
            x_RX = x0_RX * layer(x_RX) + x_RX
        features = torch.cat([x_RX, self.deep(x0_RX)], dim=1) if self.parallel else self.deep(x_RX)
        return self.logit(features).squeeze(1)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Fill every parameter from `generator`: table N(0, 0.01²), weights as Glorot and Bengio do, biases 0."""
        fill_table(self.table, lambda part: part.normal_(0.0, 0.01, generator=generator))
        for linear in linear_modules(self):
            fill_xavier(linear, generator)
