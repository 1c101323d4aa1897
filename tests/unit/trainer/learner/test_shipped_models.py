"""DCN v2, DeepFM and tables of the features' own: against the papers' formulas in float64, and α* by reverse mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.reverse_mode import measured_and_expected
from trainer.learner import ModelConfig, build_model, count_parameters, rows_of_tables
from trainer.learner.models import DLRM

DENSE, SPARSE, ROWS, WIDTH, BATCH = 3, 4, 11, 5, 9
BUCKETS = (100, 3, 7, 40_000_000)
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("dcn_v2", {}),
    ("dcn_v2", {"structure": "parallel", "cross_layers": 2, "low_rank": 3}),
    ("deepfm", {}),
    ("deepfm", {"first_order": False}),
]


def made(factory: str, options: dict[str, Any], **given: Any) -> Any:
    settings = {"table_rows": ROWS, "embedding_dim": WIDTH, "top": (8, 6, 1), "factory": factory, "options": options}
    config = ModelConfig(**settings | given)
    model = build_model(config, dense_features=DENSE, sparse_features=SPARSE, seed=1, bucket_sizes=BUCKETS).double()
    generator = torch.Generator().manual_seed(5)
    for weight in model.parameters():  # biases and first-order weights begin at 0, where a mistake would not show
        weight.data.normal_(0.0, 0.5, generator=generator)
    return model


def batch(seed: int = 0, sizes: tuple[int, ...] = (ROWS,) * SPARSE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand((BATCH, DENSE), generator=generator, dtype=torch.float64)
    ids = torch.stack([torch.randint(n, (BATCH,), generator=generator, dtype=torch.int32) for n in sizes])
    return dense, ids, torch.rand(BATCH, generator=generator).round().double()


def weights_of(model: nn.Module) -> dict[str, NDArray[np.float64]]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def mlp(w: dict[str, NDArray[np.float64]], x: NDArray[np.float64]) -> NDArray[np.float64]:
    for layer in (0, 2):
        x = np.maximum(w[f"deep.{layer}.weight"] @ x + w[f"deep.{layer}.bias"], 0)
    return x


def dcn_v2(w: dict[str, NDArray[np.float64]], x: NDArray[np.float64], ids: NDArray[np.int32], options: Any) -> float:
    x0 = np.concatenate([*(w["table.weight"][i] for i in ids), x])
    xl = x0
    for layer in range(options.get("cross_layers", 3)):
        if "low_rank" in options:
            v, u = w[f"cross.{layer}.0.weight"], w[f"cross.{layer}.1.weight"]
            xl = x0 * (u @ (v @ xl) + w[f"cross.{layer}.1.bias"]) + xl
        else:
            xl = x0 * (w[f"cross.{layer}.weight"] @ xl + w[f"cross.{layer}.bias"]) + xl
    parallel = options.get("structure") == "parallel"
    features = np.concatenate([xl, mlp(w, x0)]) if parallel else mlp(w, xl)
    return (w["logit.weight"] @ features + w["logit.bias"]).item()


def deepfm(w: dict[str, NDArray[np.float64]], x: NDArray[np.float64], ids: NDArray[np.int32], options: Any) -> float:
    fields = [w["table.weight"][i] for i in ids] + [v * value for v, value in zip(w["dense_vectors"], x, strict=True)]
    logit = (w["logit.weight"] @ mlp(w, np.concatenate(fields)) + w["logit.bias"]).item()
    logit += sum(float(fields[i] @ fields[j]) for i in range(len(fields)) for j in range(i))
    if options.get("first_order", True):
        logit += sum(w["sparse_weights.weight"][i].item() for i in ids) + float(w["dense_weights"] @ x)
    return logit


@pytest.mark.parametrize(("factory", "options"), KINDS)
def test_logits_are_those_of_the_formulas(factory: str, options: dict[str, Any]) -> None:
    model = made(factory, options)
    dense, ids, _ = batch()
    reference = {"dcn_v2": dcn_v2, "deepfm": deepfm}[factory]
    expected = [reference(weights_of(model), dense[r].numpy(), ids[:, r].numpy(), options) for r in range(BATCH)]
    np.testing.assert_allclose(model(dense, ids).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("tables", ["shared", "per_feature"])
@pytest.mark.parametrize(("factory", "options"), KINDS)
def test_alpha_is_that_of_reverse_mode(factory: str, options: dict[str, Any], tables: str) -> None:
    model = made(factory, options, tables=tables)
    sizes = (ROWS, 3, 7, ROWS) if tables == "per_feature" else (ROWS,) * SPARSE
    (x1, ids1, y1), (x2, ids2, y2) = batch(1, sizes), batch(2, sizes)
    from stepsize import BCEWithLogits

    estimate, slope, curvature = measured_and_expected(
        model,
        nn.functional.binary_cross_entropy_with_logits,
        ((x1, ids1), y1),
        ((x2, ids2), y2),
        loss=BCEWithLogits(),
    )
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)


@pytest.mark.parametrize("factory", ["dlrm", "dcn_v2", "deepfm"])
def test_tables_of_their_own_are_separate_embeddings(factory: str) -> None:
    """As the shared model whose every feature looks up rows of its own, and with gradients in those alone."""
    model = made(factory, {}, tables="per_feature")
    sizes = (ROWS, 3, 7, ROWS)
    assert rows_of_tables(ModelConfig(table_rows=ROWS, tables="per_feature"), BUCKETS) == sizes
    shared = made(factory, {}, table_rows=sum(sizes))
    shared.load_state_dict(model.state_dict())
    dense, ids, _ = batch(3, sizes)
    starts = torch.tensor([[0], [ROWS], [ROWS + 3], [ROWS + 10]], dtype=torch.int32)
    assert torch.equal(model(dense, ids), shared(dense, ids + starts))
    tables = [nn.Embedding.from_pretrained(part) for part in model.table.weight.detach().split(sizes)]
    found = model.table(ids + model.first_row)
    assert torch.equal(found, torch.stack([table(i) for table, i in zip(tables, ids, strict=True)]))


def test_ids_of_rounded_buckets_fit_their_tables() -> None:
    """float32 rounds buckets above 2²⁴, also upwards, past the last bucket."""
    rows = rows_of_tables(ModelConfig(table_rows=2**30, tables="per_feature"), (2**24 + 4,))
    assert isinstance(rows, tuple)
    assert rows[0] == int(np.float32(2**24 + 3)) + 1 > 2**24 + 4


@pytest.mark.parametrize("factory", ["dlrm", "dcn_v2", "deepfm"])
def test_equal_seeds_give_equal_weights_and_parameters_are_counted(factory: str) -> None:
    config = ModelConfig(table_rows=50, factory=factory, tables="per_feature")
    features: Any = {"dense_features": DENSE, "sparse_features": SPARSE, "bucket_sizes": BUCKETS}
    torch.manual_seed(8)
    one, two, other = (build_model(config, **features, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) and one[name].isfinite().all() for name in one)
    assert not torch.equal(one["table.weight"], other["table.weight"])
    assert count_parameters(config, **features) == sum(value.numel() for value in one.values())


def test_dlrm_keeps_the_names_of_its_weights() -> None:
    """Checkpoints of earlier versions hold these."""
    model = DLRM(dense_features=3, sparse_features=2, table_rows=5, embedding_dim=4, bottom=(6, 4), top=(7, 1))
    layers = ["bottom.0", "bottom.2", "top.0", "top.2"]
    assert list(model.state_dict()) == ["table.weight", *(f"{n}.{k}" for n in layers for k in ("weight", "bias"))]


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("dcn_v2", {"cross_layer": 3}, "model.options.cross_layer: dcn_v2 has no such setting; it has cross_layers"),
        ("dcn_v2", {"structure": "both"}, "model.options.structure is 'both'; give 'stacked' or 'parallel'"),
        ("dcn_v2", {"cross_layers": 0}, "model.options.cross_layers is 0; give 1 or more"),
        ("dcn_v2", {"low_rank": 0}, "model.options.low_rank is 0; give 1 or more"),
        ("deepfm", {"first_order": 1}, "model.options.first_order is 1; give true or false"),
        ("dlrm", {"x": 1}, "model.options.x: dlrm has no such setting; it has none"),
        ("dcn", {}, "model.factory is 'dcn'; give one of dlrm, dcn_v2, deepfm"),
    ],
)
def test_options_that_a_model_does_not_take_are_refused(factory: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(ModelConfig(factory=factory, options=options), dense_features=3, sparse_features=4, seed=0)
