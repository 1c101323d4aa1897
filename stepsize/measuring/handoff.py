"""Where a measurement runs and how its numbers reach the host: inline on the CPU, on a side stream on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def host_sees(tensor: Tensor) -> bool:
    """Whether the host can look at the numbers of `tensor` without waiting for a device."""
    return tensor.device.type == "cpu"


Quantities = dict[str, Tensor]
"""Float64 vectors by name."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """Quantities on their way to the host, end to end in `values`, which may be read once `done()`."""

    sizes: dict[str, int]
    values: Tensor
    done: Callable[[], bool]
    wait: Callable[[], None]

    def read(self) -> dict[str, list[float]]:
        """The quantities as floats; only once `done()`."""
        vectors = self.values.split(list(self.sizes.values()))
        return {name: vector.tolist() for name, vector in zip(self.sizes, vectors, strict=True)}


class Lane(Protocol):
    """Runs work that only reads `uses` and tensors nobody writes to any more; what is submitted first is done first."""

    def submit(self, work: Callable[[], Quantities], uses: Iterable[Tensor]) -> Pending: ...


class Inline:
    """Runs the work at once, in the caller's thread; it is done when `submit` returns."""

    def submit(self, work: Callable[[], Quantities], uses: Iterable[Tensor]) -> Pending:
        sizes, values = _end_to_end(work())
        return Pending(sizes=sizes, values=values, done=lambda: True, wait=lambda: None)


class SideStream:
    """Runs the work on a CUDA stream of its own, behind what the current stream has been given so far.

    The current stream never waits for this one, and the host for neither: the numbers are copied to pinned memory,
    with an event behind them. The tensors in `uses` are recorded on the stream, so that the allocator hands their
    memory out again only once the work is through with it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # the lowest priority there is: a training loop on a stream of priority -1 goes ahead of it
        self.stream = torch.cuda.Stream(device, priority=0)

    def submit(self, work: Callable[[], Quantities], uses: Iterable[Tensor]) -> Pending:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        for tensor in uses:
            if tensor.is_cuda:
                tensor.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            sizes, together = _end_to_end(work())
            values = torch.empty(together.shape, dtype=torch.float64, pin_memory=True)
            values.copy_(together, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # who waits for it leaves the core to others
            arrived.record(self.stream)
        return Pending(sizes=sizes, values=values, done=arrived.query, wait=arrived.synchronize)


def lane_for(device: torch.device) -> Lane:
    """The side stream on a CUDA device, inline elsewhere."""
    return SideStream(device) if device.type == "cuda" else Inline()


def _end_to_end(quantities: Quantities) -> tuple[dict[str, int], Tensor]:
    """The lengths by name and all vectors in one, where the first is; a rate that lives on the host goes there too."""
    vectors = list(quantities.values())
    together = torch.cat([vector.to(vectors[0].device, non_blocking=True) for vector in vectors])
    return {name: len(vector) for name, vector in quantities.items()}, together
