"""DeepFM: a factorization machine and an MLP over the same embeddings (Guo et al., IJCAI 2017, arXiv:1703.04247)."""

from __future__ import annotations

from collections.abc import Sequence

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


class DeepFM(nn.Module):
    """logit = b + Σᵢ wᵢ xᵢ + Σᵢ<ⱼ ⟨vᵢ, vⱼ⟩ xᵢ xⱼ + MLP(v₁ x₁, …, v_F x_F).

    R rows, D dense features, S sparse features, E embedding width, F = S + D fields. x of a sparse field is 1 for its
    table row; a dense field has one vector v, which its value multiplies.
    `first_order` False leaves Σ wᵢ xᵢ out. The MLP's widths are those of `top`.
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
        first_order: bool = True,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        if not isinstance(first_order, bool):
            raise ValueError(f"first_order is {first_order!r}; give true or false")
        self.table = embedding(table_rows, embedding_dim, device, ranks)
        self.first_row: Tensor | None
        self.register_buffer("first_row", table_starts(table_rows, device), persistent=False)
        self.dense_vectors = nn.Parameter(torch.empty(dense_features, embedding_dim, device=device))
        self.sparse_weights = embedding(table_rows, 1, device, ranks) if first_order else None
        self.dense_weights = nn.Parameter(torch.empty(dense_features, device=device)) if first_order else None
        *hidden, outputs = top
        fields = (sparse_features + dense_features) * embedding_dim
        self.deep = relu_mlp((fields, *hidden), device, dropout=dropout)
        (self.logit,) = linears((hidden[-1] if hidden else fields, outputs), device)  # its bias is b

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits (R,) of float `dense` (R, D) and integer table rows `ids` (S, R)."""
        rows_SR = rows_in_one(ids, self.first_row)
        fields_RFE = torch.cat(
            [self.table(rows_SR).transpose(0, 1), dense.unsqueeze(2) * self.dense_vectors], dim=1
        )  # v x
        # Σᵢ<ⱼ ⟨aᵢ, aⱼ⟩ = (|Σ aᵢ|² − Σ |aᵢ|²) / 2
        pairs_R = 0.5 * (fields_RFE.sum(1).square() - fields_RFE.square().sum(1)).sum(1)
        logits_R = self.logit(self.deep(fields_RFE.flatten(1))).squeeze(1) + pairs_R
        if self.sparse_weights is not None:
            logits_R = logits_R + self.sparse_weights(rows_SR).sum((0, 2))
        if self.dense_weights is not None:
            logits_R = logits_R + dense @ self.dense_weights
        return logits_R

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Fill every parameter from `generator`: vectors N(0, 0.01²), the MLP as Glorot and Bengio do, w and b 0."""
        fill_table(self.table, lambda part: part.normal_(0.0, 0.01, generator=generator))
        self.dense_vectors.normal_(0.0, 0.01, generator=generator)
        if self.sparse_weights is not None:
            self.sparse_weights.weight.zero_()
        if self.dense_weights is not None:
            self.dense_weights.zero_()
        for linear in linear_modules(self):
            fill_xavier(linear, generator)
