"""Whether the kernels can run, told with what to do about it, and what runs where they cannot."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import trainer.learner.nadamw

pytest.importorskip("triton")

from trainer.learner.kernels import rounding, usable
from trainer.learner.nadamw import Piece, _move_fused, _move_in_waves, _way_of
from trainer.learner.tables import reason_for_dense

CUDA = torch.device("cuda", 0)


@pytest.fixture
def a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that Triton could run on."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(usable, "find_spec", lambda name: object())
    monkeypatch.setattr(rounding, "foreach_lerp_rounding", lambda device: "once")


def why(device: torch.device = CUDA) -> str | None:
    return usable.unusable.__wrapped__(device)


@pytest.mark.usefixtures("a_device")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why() is None
    assert "not for cpu" in str(why(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0 at least, not for (7, 5)" in str(why())
    monkeypatch.setattr(usable, "find_spec", lambda name: None)
    assert "pip install 'alphastream[cuda]'" in str(why())


@pytest.mark.usefixtures("a_device")
def test_a_kernel_that_cannot_be_run_is_told_once_and_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")

    monkeypatch.setattr(rounding, "foreach_lerp_rounding", fails)
    with pytest.warns(UserWarning, match="torch's slower ones do: Failed to find C compiler"):
        reason = why()
    assert reason == "none can be run there (Failed to find C compiler.)"


def test_a_table_is_refused_where_the_kernels_cannot_run() -> None:
    reason = reason_for_dense(nn.Embedding(4, 2, device="meta"))
    assert reason is not None
    assert "Triton" in reason
    assert reason_for_dense(nn.Embedding(4, 2)) is None


@pytest.mark.parametrize(("reason", "way"), [(None, _move_fused), ("it is not installed", _move_in_waves)])
def test_whole_tensors_on_cuda_take_the_fused_pass_where_it_runs(
    reason: str | None, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnCuda(torch.Tensor):
        device = CUDA

    def piece(dtype: torch.dtype = torch.float32, *, strided: bool = False) -> Piece:
        memory = torch.zeros(4, 4, 6, dtype=dtype)[..., :: 2 if strided else 1]
        theta, g, m, v = (tensor.as_subclass(OnCuda) for tensor in memory)
        return Piece(theta, g, m, v, torch.zeros(()))

    monkeypatch.setattr(trainer.learner.nadamw.kernels, "unusable", lambda device: reason)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _way_of(piece()) is way
    assert _way_of(piece(torch.float64)) is _move_in_waves
    assert _way_of(piece(strided=True)) is _move_in_waves
