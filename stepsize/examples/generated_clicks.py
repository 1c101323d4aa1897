"""What the examples train on: generated clicks with categories, and a model of an embedding table and an MLP."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

ROWS, CATEGORIES, DENSE = 128, 1000, 4


class ClickModel(nn.Module):
    """Logits (R,) of dense (R, D) and ids (R, 2)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.table = nn.Embedding(CATEGORIES, 8)
            self.top = nn.Sequential(nn.Linear(DENSE + 16, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.top(torch.cat([dense, self.table(ids).flatten(1)], dim=1)).squeeze(1)


def batches(count: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`count` batches, none alike, of dense (R, D), ids (R, 2) and clicks (R,)."""
    drawn = torch.Generator().manual_seed(seed)
    taste = torch.randn(CATEGORIES, generator=drawn)
    weights = torch.randn(DENSE, generator=drawn)
    for _ in range(count):
        dense = torch.randn(ROWS, DENSE, generator=drawn)
        ids = torch.randint(CATEGORIES, (ROWS, 2), generator=drawn)
        chance = torch.sigmoid(dense @ weights + taste[ids].sum(1) - 1)
        yield dense, ids, torch.bernoulli(chance, generator=drawn)
