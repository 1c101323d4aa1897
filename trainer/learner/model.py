"""The click model: DLRM with one shared embedding table, as AlgoPerf's Criteo workload defines it."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

PRESETS_FOLDER = Path(__file__).with_name("presets")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `[model]` section. What is None comes from the preset."""

    preset: str = "dlrm-tiny"
    """Named sizes: "dlrm-small" (AlgoPerf's, 539M parameters) or "dlrm-tiny" (4M, for one machine)."""
    table_rows: int | None = None
    """Rows of the one embedding table that all sparse features share."""
    embedding_dim: int | None = None
    """Width of an embedding, and of the bottom MLP's output."""
    bottom: tuple[int, ...] | None = None
    """Widths of the bottom MLP's layers; the last must equal `embedding_dim`."""
    top: tuple[int, ...] | None = None
    """Widths of the top MLP's layers; the last must be 1."""
    dropout: float | None = None
    """Share of the last hidden layer of the top MLP that is dropped while training."""

    def __post_init__(self) -> None:
        for name in ("table_rows", "embedding_dim"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31:
                raise ValueError(f"model.{name} is {value}; give a whole number from 1 to 2³¹ − 1")
        for name in ("bottom", "top"):
            widths = getattr(self, name)
            if widths is not None and (not widths or min(widths) < 1):
                raise ValueError(f"model.{name} is {list(widths)}; give at least one width, all positive")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout is {self.dropout}; give a share from 0 to below 1")

    def resolved(self) -> ModelConfig:
        """The same with every None filled from the preset.

        Where `embedding_dim` is given and `bottom` is not, the preset's bottom MLP ends in that width.

        Raises: ValueError for an unknown preset or sizes that do not fit one another.
        """
        values = load_preset(self.preset)["model"]
        given = {name: getattr(self, name) for name in values if getattr(self, name) is not None}
        merged = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()} | given
        if "embedding_dim" in given and "bottom" not in given:
            merged["bottom"] = (*merged["bottom"][:-1], merged["embedding_dim"])
        if merged["bottom"][-1] != merged["embedding_dim"]:
            raise ValueError(
                f"model.bottom ends in {merged['bottom'][-1]} and model.embedding_dim is {merged['embedding_dim']}; "
                "make them equal, the interaction multiplies both"
            )
        if merged["top"][-1] != 1:
            raise ValueError(f"model.top ends in {merged['top'][-1]}; end it in 1, for the logit")
        return replace(self, **merged)


def preset_names() -> list[str]:
    """The names that `model.preset` accepts."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml"))


def load_preset(name: str) -> dict[str, dict[str, Any]]:
    """The preset's TOML: section → key → value, with at least `[model]` and `[optimizer]`.

    Raises: ValueError for a name that is none of `preset_names()`.
    """
    if name not in preset_names():
        raise ValueError(f"model.preset is {name!r}; known presets are {', '.join(preset_names())}")
    return tomllib.loads((PRESETS_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


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
