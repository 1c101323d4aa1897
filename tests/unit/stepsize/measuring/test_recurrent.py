"""Recurrent layers and cells where torch's own kernels have no forward-mode formula: written out, the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from stepsize import Estimate, StepSizeWorker
from stepsize.measuring.forward_mode import recurrent, true_to_reverse

CE = nn.CrossEntropyLoss()


class Layers(nn.Module):
    """x (R, T, 6), lengths (R,) to logits (R, 4), by a recurrent layer of any options."""

    def __init__(self, kind: Any, *, packed: bool, **options: Any) -> None:
        super().__init__()
        self.layers = kind(6, 8, batch_first=True, **options)
        self.head, self.packed = nn.LazyLinear(4), packed

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        inputs = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False) if self.packed else x
        _, states = self.layers(inputs)
        hidden = states[0] if isinstance(states, tuple) else states
        return self.head(hidden.transpose(0, 1).flatten(1))


class Cells(nn.Module):
    def __init__(self, kind: type[nn.RNNCellBase], **options: Any) -> None:
        super().__init__()
        self.cell, self.head, self.two = kind(6, 8, **options), nn.Linear(8, 4), kind is nn.LSTMCell

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        state = None
        for row in x.unbind(1):
            state = self.cell(row, state)
        assert state is not None
        return self.head(state[0] if self.two else state)


def batch(seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 5, 6, generator=g, dtype=torch.float64)
    return (x, torch.randint(1, 6, (12,), generator=g)), torch.randint(4, (12,), generator=g)


def estimate_of(model: nn.Module, device: str = "cpu") -> Estimate:
    model, (inputs, targets), (probe, probed) = model.double().to(device), batch(0), batch(1)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    CE(model(*(value.to(device) for value in inputs)), targets.to(device)).backward()
    worker = StepSizeWorker(model, optimizer, CE)
    with worker.around_step(tuple(value.to(device) for value in probe), probed.to(device), step=0):
        optimizer.step()
    [estimate] = worker.drain()
    return estimate


def made(build: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build().double()
    model(*batch(0)[0])
    return model


MODELS = {
    f"{kind.__name__}-{'packed' if packed else 'padded'}-{'-'.join(options) or 'plain'}": (
        lambda kind=kind, packed=packed, options=options: Layers(kind, packed=packed, **options)
    )
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for packed in (False, True)
    for options in (
        {},
        {"num_layers": 2, "dropout": 0.4},
        {"bidirectional": True, "bias": False},
        *([{"proj_size": 3}] if kind is nn.LSTM else []),
    )
} | {
    f"{kind.__name__}-{'bias' if bias else 'plain'}": lambda kind=kind, bias=bias: Cells(kind, bias=bias)
    for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    for bias in (False, True)
}


@pytest.mark.parametrize("name", MODELS)
def test_written_out_they_give_the_numbers_of_torch_s_own_formula(name, monkeypatch):
    expected = estimate_of(made(MODELS[name]))
    used = []
    monkeypatch.setattr(recurrent, "has_fused_cells", lambda x: used.append(x.dtype) or True)
    found = estimate_of(made(MODELS[name]))
    assert bool(used) == (not name.startswith("RNNCell"))
    assert expected.slope
    assert found.slope == pytest.approx(expected.slope, rel=1e-12)
    assert found.curvature == pytest.approx(expected.curvature, rel=1e-12)


def moved_into_one_buffer(layer: nn.RNNBase) -> None:
    """What `flatten_parameters` does with cuDNN."""
    weights = [weight for weight in layer._flat_weights if weight is not None]
    buffer = torch.zeros(sum(weight.numel() for weight in weights) + 3, dtype=weights[0].dtype)
    places = buffer[3:].split([weight.numel() for weight in weights])
    for weight, place in zip(weights, places, strict=True):
        weight.data = place.view_as(weight).copy_(weight.data)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("written_out", [False, True])
def test_a_pass_leaves_weights_where_they_lie(kind, written_out, monkeypatch):
    """A layer that meets other weights than before moves them on CUDA, and a dual tensor must not be moved."""
    expected = estimate_of(made(MODELS[f"{kind}-packed-plain"]))
    flattened = []

    def flatten(layer: nn.RNNBase) -> None:
        flattened.append(layer)
        moved_into_one_buffer(layer)

    monkeypatch.setattr(recurrent, "has_fused_cells", lambda x: written_out)
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", flatten)
    model = made(MODELS[f"{kind}-packed-plain"])
    flattened.clear()
    found = estimate_of(model)
    assert (found.slope, found.curvature) == pytest.approx((expected.slope, expected.curvature), rel=1e-12)
    before = len(flattened)
    model(*batch(0)[0])
    assert len(flattened) == before, "nor does training move them again"
    assert "flatten_parameters" not in vars(model.layers)


def test_written_out_nothing_fused_is_called():
    """The operations that a CUDA device would run, by name: none of them is a whole layer or cell."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 6)
    for kind in (nn.LSTM, nn.GRU):
        layer, called = kind(6, 8), []

        class Names(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                called.append(func.name())  # noqa: B023
                return func(*args, **(kwargs or {}))

        weights = layer._flat_weights
        states = (torch.zeros(1, 5, 8), torch.zeros(1, 5, 8)) if kind is nn.LSTM else torch.zeros(1, 5, 8)
        func = torch.lstm if kind is nn.LSTM else torch.gru
        with Names(), torch.no_grad():
            result = recurrent._LAYERS[func](x, states, weights, True, 1, 0.0, True, False, False)
        torch.testing.assert_close(result[0], layer(x)[0])
        assert not [
            name for name in called if any(kind in name for kind in ("fused", "cudnn", "mkldnn", "lstm", "gru"))
        ]


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_cuda_gives_the_cpu_s_numbers(name):
    if "dropout" in name:
        pytest.skip("the devices draw different masks")
    here, there = estimate_of(made(MODELS[name]), "cuda"), estimate_of(made(MODELS[name]))
    assert here.slope == pytest.approx(there.slope, rel=1e-9)
    assert here.curvature == pytest.approx(there.curvature, rel=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_dropout_between_layers_passes_the_self_check_on_cuda(kind):
    model = made(lambda: Layers(kind, packed=False, num_layers=2, dropout=0.4))
    assert estimate_of(model, "cuda").slope is not None


def test_the_operations_that_have_a_formula_are_left_to_torch():
    x = torch.randn(3, 5, 6)
    assert recurrent.in_forward_mode(torch.tanh, (x,), {}) is None
    assert recurrent.in_forward_mode(torch.lstm_cell, (x,), {}) is None, "the CPU's cells have formulas"
    assert true_to_reverse.RECURRENT is recurrent.RECURRENT
