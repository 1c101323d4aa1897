"""Runs the kernels on a CUDA device where there is one, and else in Triton's interpreter, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.table_rows import KERNELS_DEVICE

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a device these are tests of the device."""
    for item in items:
        if KERNELS_DEVICE.type == "cuda" and HERE in item.path.parents:
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def kernels_compute_as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("triton", reason="Triton is not installed (make extras)")
    if KERNELS_DEVICE.type == "cpu":
        from triton.runtime import interpreter

        def create_fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
            return interpreter.TensorHandle(fused_multiply_add(x.data, y.data, z.data), z.dtype.scalar)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", create_fma)  # up to 3.8 it rounds twice
    with np.errstate(all="ignore"):
        yield


def fused_multiply_add(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x·y + z of float32, rounded once.

    The product is exact in float64. The sum, rounded there to the neighbour with an odd last bit where it is not exact,
    keeps on which side of every float32 and of every middle between two it lies, so that rounding it again is right.
    """
    assert x.dtype == y.dtype == z.dtype == np.float32
    product, addend = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
    total = np.asarray(product + addend)
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)
    even = (total.view(np.int64) & 1) == 0
    outward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    inexact = np.isfinite(total) & (error != 0) & even
    return np.where(inexact, outward, total).astype(np.float32)
