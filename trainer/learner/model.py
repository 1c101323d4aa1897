"""The click model: DLRM with one shared embedding table, as AlgoPerf's Criteo workload defines it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from trainer.learner.config import ModelConfig


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
        table_rows: int,
        embedding_dim: int,
        bottom: Sequence[int],
        top: Sequence[int],
        dropout: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.dense_features, self.sparse_features = dense_features, sparse_features
        self.table = cast(nn.Embedding, skip_init(nn.Embedding, table_rows, embedding_dim, device=device))
        self.bottom = nn.Sequential()
        if dense_features:
            for linear in _linears((dense_features, *bottom), device):
                self.bottom.extend([linear, nn.ReLU()])
        vectors = sparse_features + (1 if dense_features else 0)
        features = vectors * (vectors + 1) // 2 + (embedding_dim if dense_features else 0)
        *hidden, last = _linears((features, *top), device)
        self.top = nn.Sequential()
        for linear in hidden:
            self.top.extend([linear, nn.ReLU()])
        if dropout:
            self.top.append(nn.Dropout(dropout))
        self.top.append(last)
        row, column = torch.triu_indices(vectors, vectors)
        self.triangle: Tensor
        self.register_buffer("triangle", row * vectors + column, persistent=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits (R,) of float `dense` (R, D) and integer table rows `ids` (S, R)."""
        vectors_SRE = self.table(ids)
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

        Table U(0, 1)/√rows; bottom weights U(±√(6/(in + out))); top weights N(0, 2/(in + out));
        all biases N(0, 1/out), where N's second argument is a variance.
        """
        self.table.weight.uniform_(0.0, 1.0, generator=generator).div_(math.sqrt(self.table.num_embeddings))
        for linear in _linear_modules(self.bottom):
            bound = math.sqrt(6.0 / (linear.in_features + linear.out_features))
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.normal_(0.0, math.sqrt(1.0 / linear.out_features), generator=generator)
        for linear in _linear_modules(self.top):
            deviation = math.sqrt(2.0 / (linear.in_features + linear.out_features))
            linear.weight.normal_(0.0, deviation, generator=generator)
            linear.bias.normal_(0.0, math.sqrt(1.0 / linear.out_features), generator=generator)


def build_model(config: ModelConfig, *, dense_features: int, sparse_features: int, seed: int) -> DLRM:
    """The initialized model on the CPU; equal seeds give equal weights, whatever the global generator's state.

    Raises: ValueError for a configuration that `ModelConfig.resolved` refuses.
    """
    model = _sized(config, dense_features=dense_features, sparse_features=sparse_features, device="cpu")
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def count_parameters(config: ModelConfig, *, dense_features: int, sparse_features: int) -> int:
    """Parameters of the model that `build_model` would make, without memory for it."""
    model = _sized(config, dense_features=dense_features, sparse_features=sparse_features, device="meta")
    return sum(parameter.numel() for parameter in model.parameters())


def _sized(config: ModelConfig, *, dense_features: int, sparse_features: int, device: str) -> DLRM:
    sizes = config.resolved()
    assert sizes.table_rows
    assert sizes.embedding_dim
    assert sizes.bottom
    assert sizes.top
    assert sizes.dropout is not None
    return DLRM(
        dense_features=dense_features,
        sparse_features=sparse_features,
        table_rows=sizes.table_rows,
        embedding_dim=sizes.embedding_dim,
        bottom=sizes.bottom,
        top=sizes.top,
        dropout=sizes.dropout,
        device=device,
    )


def _linears(widths: Sequence[int], device: torch.device | str) -> list[nn.Linear]:
    return [
        cast(nn.Linear, skip_init(nn.Linear, inputs, outputs, device=device))
        for inputs, outputs in itertools.pairwise(widths)
    ]


def _linear_modules(layers: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
