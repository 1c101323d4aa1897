"""How torch's averages on a device are rounded, held against the kernel that makes up for them later."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainer.learner.kernels.launches import RowArrays, average_current


@cache
def foreach_lerp_rounding(device: torch.device) -> Literal["once", "twice"] | None:
    """How torch's `lerp` of float32 on `device` rounds: once at its end, or after product and sum; None for neither."""
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(1, 4099, generator=generator).to(device) for _ in range(2))
    for rounding in ("once", "twice"):
        if all(_lerps_alike(start, end, weight, fused=rounding == "once") for weight in (0.01, 0.3, 0.7, 1.0)):
            return rounding
    return None


def _lerps_alike(start: Tensor, end: Tensor, weight: float, *, fused: bool) -> bool:
    average, expected = start.clone(), start.clone()
    stamps = torch.zeros(1, dtype=torch.int32, device=start.device)
    average_current(stamps, 0, RowArrays(end, end, end, average, fused), np.float32(weight))
    torch._foreach_lerp_([expected], [end], weight)  # pyright: ignore[reportPrivateImportUsage]
    return torch.equal(average, expected)
