"""DLRM against a float64 reference written from AlgoPerf's description, row by row."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from trainer.learner.config import ModelConfig, load_preset, preset_names
from trainer.learner.model import DLRM, build_model, count_parameters

SMALL = ModelConfig(preset="dlrm-small", table_rows=97, embedding_dim=8, bottom=(12, 8), top=(20, 16, 1))


def reference_logits(weights: dict[str, np.ndarray], dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Logits (R,) in float64, one row and one pair of vectors at a time."""
    layers = {
        part: [
            (weights[f"{part}.{i}.weight"], weights[f"{part}.{i}.bias"])
            for i in range(32)
            if f"{part}.{i}.weight" in weights
        ]
        for part in ("bottom", "top")
    }
    logits = []
    for row in range(ids.shape[1]):
        vectors, features = [], []
        if layers["bottom"]:
            x = dense[row]
            for weight, bias in layers["bottom"]:
                x = np.maximum(weight @ x + bias, 0.0)
            vectors.append(x)
            features.extend(x)
        vectors += [weights["table.weight"][ids[column, row]] for column in range(ids.shape[0])]
        for i, j in itertools.combinations_with_replacement(range(len(vectors)), 2):
            features.append(float(vectors[i] @ vectors[j]))
        x = np.array(features)
        for index, (weight, bias) in enumerate(layers["top"]):
            x = weight @ x + bias
            if index + 1 < len(layers["top"]):
                x = np.maximum(x, 0.0)
        logits.append(x[0])
    return np.array(logits)


def batch(rows: int, dense_features: int, sparse_features: int, table_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    dense = torch.rand(rows, dense_features, generator=generator) * 4
    return dense, torch.randint(0, table_rows, (sparse_features, rows), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize(("dense_features", "sparse_features"), [(13, 26), (0, 5), (1, 1)])
def test_logits_equal_the_reference(dense_features: int, sparse_features: int) -> None:
    model = build_model(SMALL, dense_features=dense_features, sparse_features=sparse_features, seed=3)
    dense, ids = batch(9, dense_features, sparse_features, 97)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    expected = reference_logits(weights, dense.double().numpy(), ids.numpy())
    assert model(dense, ids).shape == (9,)
    np.testing.assert_allclose(model.double()(dense.double(), ids).detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(model.float()(dense, ids.long()).detach().numpy(), expected, rtol=2e-5, atol=2e-6)


def test_algoperf_sizes_agree_with_the_reference_in_float32() -> None:
    model = build_model(
        ModelConfig(preset="dlrm-small", table_rows=1000), dense_features=13, sparse_features=26, seed=1
    )
    dense, ids = batch(3, 13, 26, 1000)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    expected = reference_logits(weights, dense.double().numpy(), ids.numpy())
    np.testing.assert_allclose(model(dense, ids).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_dlrm_small_has_algoperfs_parameters() -> None:
    config = ModelConfig(preset="dlrm-small")
    assert count_parameters(config, dense_features=13, sparse_features=26) == 539_267_457


def test_initialization_has_algoperfs_distributions() -> None:
    model = build_model(
        ModelConfig(preset="dlrm-small", table_rows=4096), dense_features=13, sparse_features=26, seed=0
    )
    table = model.table.weight.detach() * math.sqrt(4096)
    assert table.min() >= 0.0
    assert table.max() <= 1.0
    assert table.mean().item() == pytest.approx(0.5, abs=0.005)
    for part, scale in (("bottom", 6.0), ("top", 2.0)):
        for layer in getattr(model, part):
            if not isinstance(layer, torch.nn.Linear):
                continue
            outputs, inputs = layer.weight.shape
            expected = math.sqrt(scale / (inputs + outputs)) / (math.sqrt(3) if part == "bottom" else 1.0)
            # five standard errors of a sample deviation
            tolerance = 5 * expected / math.sqrt(2 * inputs * outputs)
            assert layer.weight.std().item() == pytest.approx(expected, abs=tolerance)
            if part == "bottom":
                assert layer.weight.abs().max() <= math.sqrt(6.0 / (inputs + outputs))
            if outputs >= 128:
                assert layer.bias.std().item() == pytest.approx(outputs**-0.5, rel=5 / math.sqrt(2 * outputs))


def test_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return list(build_model(SMALL, dense_features=13, sparse_features=26, seed=seed).parameters())

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(7)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(7), strict=True))
    assert not torch.equal(first[0], weights(8)[0])


def test_dropout_follows_the_last_hidden_relu() -> None:
    model = build_model(
        ModelConfig(preset="dlrm-small", table_rows=50, dropout=0.5), dense_features=13, sparse_features=26, seed=0
    )
    kinds = [type(layer).__name__ for layer in model.top]
    assert kinds[-4:] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert kinds.count("Dropout") == 1


def test_forward_mode_derivative_equals_the_difference_quotient() -> None:
    model = build_model(SMALL, dense_features=13, sparse_features=26, seed=0).double()
    dense, ids = batch(6, 13, 26, 97)
    tangents = {name: torch.randn_like(value) for name, value in model.named_parameters()}

    def logits(step: float) -> torch.Tensor:
        moved = {name: value.detach() + step * tangents[name] for name, value in model.named_parameters()}
        return torch.func.functional_call(model, moved, (dense.double(), ids))

    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value.detach(), tangents[name]) for name, value in model.named_parameters()}
        tangent = forward_ad.unpack_dual(torch.func.functional_call(model, duals, (dense.double(), ids))).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, (logits(1e-6) - logits(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-5)


def test_state_dict_holds_parameters_only() -> None:
    model = build_model(SMALL, dense_features=13, sparse_features=26, seed=0)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_presets_resolve_to_whole_configurations() -> None:
    assert {"dlrm-small", "dlrm-tiny"} <= set(preset_names())
    for name in preset_names():
        resolved = ModelConfig(preset=name).resolved()
        assert resolved.resolved() == resolved
        assert None not in (resolved.table_rows, resolved.embedding_dim, resolved.bottom, resolved.top)
        assert {"model", "optimizer"} <= set(load_preset(name))
    tiny = ModelConfig(preset="dlrm-tiny").resolved()
    assert (tiny.table_rows, tiny.embedding_dim) == (262_144, 16)


def test_given_sizes_win_over_the_preset() -> None:
    resolved = ModelConfig(preset="dlrm-tiny", embedding_dim=4, table_rows=10).resolved()
    assert resolved.bottom is not None
    assert (resolved.embedding_dim, resolved.table_rows, resolved.bottom[-1]) == (4, 10, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "dlrm-huge"}, "dlrm-huge.*dlrm-small, dlrm-tiny"),
        ({"bottom": (16, 4)}, "model.bottom ends in 4.*embedding_dim is 16"),
        ({"top": (16, 4)}, "model.top ends in 4"),
        ({"table_rows": 0}, "model.table_rows is 0"),
        ({"bottom": ()}, r"model.bottom is \[\]"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values).resolved()


def test_dlrm_keeps_ids_column_major() -> None:
    model = build_model(SMALL, dense_features=0, sparse_features=3, seed=0)
    assert isinstance(model, DLRM)
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    both = model(torch.empty(2, 0), ids)
    torch.testing.assert_close(both[1:], model(torch.empty(1, 0), ids[:, 1:]))
