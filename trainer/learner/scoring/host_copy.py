"""Tensors on their way to the host, for which nothing waits before they are asked for."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """Copies of tensors of one device in the host's memory, as they are once the current stream has come this far.

    From a CUDA device they are pinned, so that the copy is made beside what the host and the device do next. Tensors
    of the host are not copied.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors, self._arrived = tensors, None
        if tensors[0].is_cuda:
            self._tensors = tuple(_begin(tensor) for tensor in tensors)
            self._arrived = torch.cuda.Event(blocking=True)  # who waits for it leaves the core to others
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> tuple[Tensor, ...]:
        """All of them, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _begin(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
