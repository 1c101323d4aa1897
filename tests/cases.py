"""Models, losses and batches to measure on: a lazy, seeded catalogue in float64.

Letters: R rows, C outputs a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stepsize.losses import AutogradLoss, BCEWithLogits, CrossEntropy, Loss, SquaredError, WeightedRows

MakeBatch = Callable[[torch.Generator, int], tuple[tuple[Tensor, ...], Tensor]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model with its loss; nothing is built until asked for."""

    name: str
    build: Callable[[], nn.Module]
    loss: Loss
    torch_loss: nn.Module
    """The same mean loss in torch's own words, for the dense reference."""
    make_batch: MakeBatch
    rows: int = 24

    def model(self, seed: int = 0) -> nn.Module:
        """A fresh model in float64 with its parameters drawn from `seed`; torch's own generator is left alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build().double()

    def batch(self, seed: int, rows: int | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """(inputs, targets) of `rows` rows."""
        return self.make_batch(torch.Generator().manual_seed(seed), rows or self.rows)


class SmallDLRM(nn.Module):
    """Bottom MLP, one shared table, all pairwise dots, top MLP; dense (R, 4), ids (3, R) to logits (R,)."""

    def __init__(self, table_rows: int = 400) -> None:
        super().__init__()
        self.table = nn.Embedding(table_rows, 8)
        self.bottom = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(18, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        stacked = torch.cat([bottom[:, None], self.table(ids).transpose(0, 1)], 1)
        upper = torch.triu_indices(4, 4, device=dense.device)
        dots = (stacked @ stacked.mT)[:, upper[0], upper[1]]
        return self.top(torch.cat([bottom, dots], 1)).squeeze(1)


class Attention(nn.Module):
    """LayerNorm, scaled dot-product attention, mean over tokens; tokens (R, 5, 6) to logits (R, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 18)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm(tokens)).reshape(*tokens.shape[:2], 2, 9).transpose(1, 2).chunk(3, -1)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(tokens + mixed).mean(1)


class Bags(nn.Module):
    """Three EmbeddingBags, by mean, by weighted sum, and with padding; ids (R, 4), weights (R, 4) to logits (R, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.EmbeddingBag(500, 5, mode="mean")
        self.sum = nn.EmbeddingBag(500, 5, mode="sum", include_last_offset=True)
        self.padded = nn.EmbeddingBag(500, 5, mode="mean", padding_idx=0)
        self.head = nn.Linear(15, 3)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        offsets = torch.arange(0, ids.numel() + 1, ids.shape[1])
        bags = [self.mean(ids), self.sum(ids.flatten(), offsets, weights.flatten()), self.padded(ids % 7)]
        return self.head(torch.cat(bags, 1).tanh())


class TiedLanguageModel(nn.Module):
    """Next-token logits from the very table that embeds the tokens; tokens (R, 4) to logits (R, 30)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 6)
        self.position = nn.Embedding(2000, 6)
        self.body = nn.Linear(24, 6)
        self.head = nn.Linear(6, 300, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.table(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.head(self.body(embedded.flatten(1)).tanh())


class SeveralTables(nn.Module):
    """Two modules that share one table, a table read twice in a pass, one of sparse gradients; ids (R, 3) to (R,)."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Embedding(600, 4)
        self.right = nn.Embedding(600, 4)
        self.right.weight = self.left.weight
        self.own = nn.Embedding(700, 4, sparse=True, padding_idx=3)
        self.head = nn.Linear(16, 1)

    def forward(self, ids: Tensor) -> Tensor:
        parts = [self.left(ids[:, 0]), self.right(ids[:, 1]), self.own(ids[:, 2]), self.own(ids[:, 0])]
        return self.head(torch.cat(parts, 1).sin()).squeeze(1)


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _clicks(g: torch.Generator, rows: int) -> Tensor:
    return torch.randint(2, (rows,), generator=g).double()


def _poisson(z: Tensor, y: Tensor) -> Tensor:
    return (z.exp() - y * z).squeeze(1)


class PoissonLoss(nn.Module):
    """A loss that torch's list of closed forms does not know."""

    reduction = "mean"

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return _poisson(z, y).mean()


class WeightedSmoothedLoss(nn.Module):
    """Log loss against targets 0.05 and 0.95, clicks three times and other rows 0.3 times, its mean over rows."""

    reduction = "mean"

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        target = 0.9 * y + 0.05
        losses = -target * torch.sigmoid(z).log() - (1 - target) * torch.sigmoid(-z).log()
        return ((3.0 * y + 0.3 * (1 - y)) * losses).mean()


class RowWeightedLoss(nn.Module):
    """Log loss of clicks in the first column of the targets, each row times its second column; the mean over rows."""

    reduction = "mean"

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        losses = -y[:, 0] * torch.sigmoid(z).log() - (1 - y[:, 0]) * torch.sigmoid(-z).log()
        return (losses * y[:, 1]).mean()


def _with_weights(targets: Tensor, generator: torch.Generator) -> Tensor:
    """Targets (R, 2), with weights from 0.1 to some 7."""
    weights = torch.rand(len(targets), generator=generator, dtype=torch.float64).mul(4).sub(2).exp()
    return torch.stack([targets, weights], 1)


def _mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 12), nn.GELU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, outputs))


def _convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 3)
    )


CASES = {
    case.name: case
    for case in (
        Case(
            name="dlrm_bce",
            build=SmallDLRM,
            loss=BCEWithLogits(),
            torch_loss=nn.BCEWithLogitsLoss(),
            make_batch=lambda g, r: ((_normal(g, r, 4), torch.randint(400, (3, r), generator=g)), _clicks(g, r)),
        ),
        Case(
            name="mlp_cross_entropy",
            build=lambda: _mlp(6, 5),
            loss=CrossEntropy(),
            torch_loss=nn.CrossEntropyLoss(),
            make_batch=lambda g, r: ((_normal(g, r, 6),), torch.randint(5, (r,), generator=g)),
        ),
        Case(
            name="mlp_soft_targets",
            build=lambda: _mlp(6, 5),
            loss=CrossEntropy(),
            torch_loss=nn.CrossEntropyLoss(),
            make_batch=lambda g, r: ((_normal(g, r, 6),), torch.softmax(_normal(g, r, 5), 1)),
        ),
        Case(
            name="regression_mse",
            build=lambda: _mlp(6, 3),
            loss=SquaredError(),
            torch_loss=nn.MSELoss(),
            make_batch=lambda g, r: ((_normal(g, r, 6),), _normal(g, r, 3)),
        ),
        Case(
            name="convolution_batch_norm",
            build=_convolution,
            loss=CrossEntropy(),
            torch_loss=nn.CrossEntropyLoss(),
            make_batch=lambda g, r: ((_normal(g, r, 2, 6, 6),), torch.randint(3, (r,), generator=g)),
        ),
        Case(
            name="attention",
            build=Attention,
            loss=CrossEntropy(),
            torch_loss=nn.CrossEntropyLoss(),
            make_batch=lambda g, r: ((_normal(g, r, 5, 6),), torch.randint(3, (r,), generator=g)),
        ),
        Case(
            name="embedding_bags",
            build=Bags,
            loss=CrossEntropy(),
            torch_loss=nn.CrossEntropyLoss(),
            make_batch=lambda g, r: (
                (torch.randint(500, (r, 4), generator=g), _normal(g, r, 4)),
                torch.randint(3, (r,), generator=g),
            ),
        ),
        Case(
            name="tied_embeddings",
            build=TiedLanguageModel,
            loss=CrossEntropy(),
            torch_loss=nn.CrossEntropyLoss(),
            make_batch=lambda g, r: (
                (torch.randint(300, (r, 4), generator=g),),
                torch.randint(300, (r,), generator=g),
            ),
        ),
        Case(
            name="several_tables",
            build=SeveralTables,
            loss=BCEWithLogits(),
            torch_loss=nn.BCEWithLogitsLoss(),
            make_batch=lambda g, r: ((torch.randint(600, (r, 3), generator=g),), _clicks(g, r)),
        ),
        Case(
            name="poisson_of_the_user",
            build=lambda: _mlp(6, 1),
            loss=AutogradLoss(_poisson),
            torch_loss=PoissonLoss(),
            make_batch=lambda g, r: ((_normal(g, r, 6),), torch.randint(4, (r, 1), generator=g).double()),
        ),
        Case(
            name="multilabel_bce",
            build=lambda: _mlp(6, 3),
            loss=BCEWithLogits(),
            torch_loss=nn.BCEWithLogitsLoss(),
            make_batch=lambda g, r: ((_normal(g, r, 6),), torch.rand(r, 3, generator=g, dtype=torch.float64).round()),
        ),
        Case(
            name="weighted_smoothed_bce",
            build=SmallDLRM,
            loss=BCEWithLogits(positive_weight=3.0, negative_weight=0.3, label_smoothing=0.1),
            torch_loss=WeightedSmoothedLoss(),
            make_batch=lambda g, r: ((_normal(g, r, 4), torch.randint(400, (3, r), generator=g)), _clicks(g, r)),
        ),
        Case(
            name="row_weighted_bce",
            build=SmallDLRM,
            loss=WeightedRows(BCEWithLogits()),
            torch_loss=RowWeightedLoss(),
            make_batch=lambda g, r: (
                (_normal(g, r, 4), torch.randint(400, (3, r), generator=g)),
                _with_weights(_clicks(g, r), g),
            ),
        ),
    )
}
"""Every case by name."""


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Clones of the model's parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
