"""NAdamW over whole tensors by the Triton kernel against the compiled pass, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trainer.learner.nadamw
from tests.resume import assert_identical
from tests.table_rows import BETA1, BETA2, KERNELS_DEVICE, SPECIAL, F, equal, on_kernels_device
from trainer.learner.nadamw import NAdamW, _kernel, _move_fused

launches = pytest.importorskip("trainer.learner.kernels.launches", reason="Triton is not installed (make extras)")

NUMBERS = [F(value) for value in (1 - 1e-4, BETA1, 1 - BETA1, BETA2, 1 - BETA2, 3e-9, 2e-3)]


def pieces_of(sizes: list[int], seed: int = 0) -> list[list[Tensor]]:
    """θ, g, m and v of each size."""
    generator = torch.Generator().manual_seed(seed)
    signed = [[torch.randn(size, generator=generator) for _ in range(3)] for size in sizes]
    return [
        [tensor.to(KERNELS_DEVICE) for tensor in (*three, torch.rand(len(three[0]), generator=generator))]
        for three in signed
    ]


def both_ways(pieces: list[list[Tensor]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    expected = [[tensor.cpu().numpy().copy() for tensor in piece] for piece in pieces]
    for theta, g, m, v in expected:
        _kernel(theta, g, m, v, *NUMBERS)
    launches.move_whole(pieces, NUMBERS)
    return [tensor.cpu().numpy() for piece in pieces for tensor in piece], [
        array for piece in expected for array in piece
    ]


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
    grids = np.meshgrid(SPECIAL, SPECIAL, SPECIAL, SPECIAL)
    found, expected = both_ways([[on_kernels_device(grid.ravel().astype(F)) for grid in grids]])
    assert equal(found, expected)


def trained(monkeypatch: pytest.MonkeyPatch, *, by_kernel: bool) -> list[Tensor]:
    """Parameters and moments after steps with the same gradients, by the kernel or by the compiled pass."""
    with monkeypatch.context() as patched:
        device = KERNELS_DEVICE if by_kernel else torch.device("cpu")
        if by_kernel:
            patched.setattr(trainer.learner.nadamw, "_way_of", lambda piece: _move_fused)
        generator = torch.Generator().manual_seed(0)
        shapes = [(16, 5), (16,), (33, 16), (33,), (1, 33), ()]
        parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
        optimizer = NAdamW(parameters, lr=1e-2)
        for step in range(12):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 + step % 3)
            for parameter, shape in zip(parameters, shapes, strict=True):
                parameter.grad = torch.randn(shape, generator=generator).to(device)
            if step == 4:
                parameters[2].grad = None  # and so at another step than the others from now on
            optimizer.step()
        moments = [optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
        return [tensor.detach().cpu() for tensor in (*parameters, *moments)]


def test_a_training_is_that_of_the_compiled_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_identical(trained(monkeypatch, by_kernel=True), trained(monkeypatch, by_kernel=False))
