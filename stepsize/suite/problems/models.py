"""The small models of the suite: click models, multilayer perceptrons, a convolution, character models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def layers(widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with an activation between any two."""
    made: list[nn.Module] = []
    for here, there in pairwise(widths):
        made += [nn.Linear(here, there), activation()]
    return nn.Sequential(*made[:-1])


class LogisticRegression(nn.Module):
    """One weight a category, one a number, and a bias; all begin at zero."""

    def __init__(self, *, dense: int, table: int) -> None:
        super().__init__()
        self.weights = nn.Embedding(table, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        self.dense = nn.Linear(dense, 1, bias=False) if dense else None
        nn.init.zeros_(self.weights.weight)
        if self.dense is not None:
            nn.init.zeros_(self.dense.weight)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits (R,)."""
        logits = self.weights(ids).sum((1, 2)) + self.bias
        return logits if self.dense is None else logits + self.dense(dense).squeeze(1)


class ClickMLP(nn.Module):
    """The numbers beside the embeddings of all categories, through a multilayer perceptron."""

    def __init__(self, *, dense: int, categories: int, table: int, embedding: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.table = nn.Embedding(table, embedding)
        nn.init.normal_(self.table.weight, std=1 / math.sqrt(embedding))
        self.top = layers([dense + categories * embedding, *hidden, 1])

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits (R,)."""
        return self.top(torch.cat([dense, self.table(ids).flatten(1)], 1)).squeeze(1)


class SmallDLRM(nn.Module):
    """Naumov et al. 2019: a bottom network of the numbers, inner products of all pairs, a top network."""

    pairs: Tensor

    def __init__(self, *, dense: int, categories: int, table: int, embedding: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.table = nn.Embedding(table, embedding)
        nn.init.normal_(self.table.weight, std=1 / math.sqrt(embedding))
        self.bottom = layers([dense, 2 * embedding, embedding]) if dense else None
        vectors = categories + (dense > 0)
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, -1), persistent=False)
        self.top = layers([vectors * (vectors - 1) // 2 + embedding * (dense > 0), *hidden, 1])

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits (R,)."""
        vectors = self.table(ids)
        first = self.bottom(dense) if self.bottom is not None else None
        if first is not None:
            vectors = torch.cat([first.unsqueeze(1), vectors], 1)
        products = (vectors @ vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(products if first is None else torch.cat([first, products], 1)).squeeze(1)


class SmallConvolution(nn.Module):
    """Two convolutions with BatchNorm over square grey images, then a linear layer."""

    def __init__(self, *, side: int, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.side = side
        first, second = channels
        self.body = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * ((side + 1) // 2) ** 2, classes),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (R, C) of pixels (R, side²)."""
        return self.body(pixels.view(-1, 1, self.side, self.side))


class _Block(nn.Module):
    """Attention to what came before, then two linear layers, each normalized first and added."""

    mask: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.three, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = layers([width, 4 * width, width], nn.GELU)
        self.register_buffer("mask", torch.full((window, window), -math.inf).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, window, width = x.shape
        three = self.three(self.before_attention(x)).view(rows, window, 3, self.heads, width // self.heads)
        query, key, value = three.permute(2, 0, 3, 1, 4)
        weights = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads) + self.mask[:window, :window]
        x = x + self.out((weights.softmax(-1) @ value).transpose(1, 2).reshape(rows, window, width))
        return x + self.layers(self.before_layers(x))


class CharacterTransformer(nn.Module):
    """A decoder over characters with learned positions."""

    def __init__(self, *, characters: int, window: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(characters, width), nn.Parameter(torch.empty(window, width))
        for weight in (self.characters.weight, self.positions):
            nn.init.normal_(weight, std=0.02)
        self.blocks = nn.Sequential(*(_Block(width, heads, window) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits (R, C, T) of the character after each."""
        x = self.characters(codes) + self.positions[: codes.shape[1]]
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)


class CharacterGRU(nn.Module):
    """Gated recurrent units over characters, given as one of C each."""

    def __init__(self, *, characters: int, width: int) -> None:
        super().__init__()
        self.characters = characters
        self.units = nn.GRU(characters, width, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits (R, C, T) of the character after each."""
        shown = functional.one_hot(codes, self.characters).to(self.head.weight.dtype)
        return self.head(self.units(shown)[0]).transpose(1, 2)
