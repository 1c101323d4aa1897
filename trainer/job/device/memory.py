"""How full the memory of a CUDA device is, for who scrapes the run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch


def device_memory(device: torch.device) -> Callable[[], dict[str, float]]:
    """What tells bytes by state: `allocated` in tensors, `reserved` by this process's allocator, `free`, `total`.

    It tells nothing of a CPU, whose memory is the process's. Any thread may ask: nothing waits for the device.
    """
    return partial(_cuda_memory, device) if device.type == "cuda" else dict


def _cuda_memory(device: torch.device) -> dict[str, float]:
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "free": free,
        "total": total,
    }
