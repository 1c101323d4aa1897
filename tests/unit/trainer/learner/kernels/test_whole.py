"""NAdamW over whole tensors by the Triton kernel against the compiled pass, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trainer.learner.nadamw
from tests.resume import assert_identical
from tests.table_rows import BETA1, BETA2, SPECIAL, F, equal
from trainer.learner.nadamw import NAdamW, _kernel, _move_fused

launches = pytest.importorskip("trainer.learner.kernels.launches", reason="Triton is not installed (make extras)")

NUMBERS = [F(value) for value in (1 - 1e-4, BETA1, 1 - BETA1, BETA2, 1 - BETA2, 3e-9, 2e-3)]


def pieces_of(sizes: list[int], seed: int = 0) -> list[list[Tensor]]:
    """θ, g, m and v of each size."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(size, generator=generator) for _ in range(3)] + [torch.rand(size)] for size in sizes]


def both_ways(pieces: list[list[Tensor]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    expected = [[tensor.numpy().copy() for tensor in piece] for piece in pieces]
    for theta, g, m, v in expected:
        _kernel(theta, g, m, v, *NUMBERS)
    launches.move_whole(pieces, NUMBERS)
    return [tensor.numpy() for piece in pieces for tensor in piece], [array for piece in expected for array in piece]


@pytest.mark.parametrize(
    "sizes", [[1], [1024], [1025], [4, 4096, 7, 1, 8, 3000, 1023], [3] * 70, [0, 5, 0], []], ids=str
)
def test_tensors_of_any_size_and_number(sizes: list[int]) -> None:
    found, expected = both_ways(pieces_of(sizes))
    assert equal(found, expected)


def test_tensors_that_begin_anywhere_in_memory() -> None:
    pieces = [[tensor[1:-2] for tensor in piece] for piece in pieces_of([67, 1100])]
    assert any(tensor.data_ptr() % 16 for tensor in pieces[0])
    found, expected = both_ways(pieces)
    assert equal(found, expected)


def test_every_mix_of_special_values() -> None:
    theta, g, m, v = (torch.tensor(grid.ravel(), dtype=torch.float32) for grid in np.meshgrid(*[SPECIAL] * 3, SPECIAL))
    found, expected = both_ways([[theta, g, m, v]])
    assert equal(found, expected)


def trained(make: Callable[[], nn.Module]) -> list[Tensor]:
    torch.manual_seed(0)
    model = make()
    optimizer = NAdamW(model.parameters(), lr=1e-2)
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 + step % 3)
        optimizer.zero_grad()
        model(torch.randn(9, 5, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        if step == 4:
            next(model.parameters()).grad = None  # and so at another step than the others from now on
        optimizer.step()
    moments = [optimizer.state[p][name] for p in model.parameters() for name in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *moments)]


def test_a_training_is_that_of_the_compiled_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 1))

    compiled = trained(make)
    monkeypatch.setattr(trainer.learner.nadamw, "_way_of", lambda piece: _move_fused)
    assert_identical(trained(make), compiled)
