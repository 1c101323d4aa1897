"""The CUDA stream that a run trains on, ahead of what is measured beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

PRIORITY = -1
"""Ahead of the default stream and of the worker's side stream, whose 0 is the lowest that CUDA has."""


@contextmanager
def training_stream(device: torch.device) -> Iterator[None]:
    """Within it, CUDA work of this thread goes to one stream of high priority, the same in all of a process.

    Where training and a measurement want the GPU at the same time, training's blocks are placed first. The stream
    begins behind what the one before it has been given, which goes on behind this one. Elsewhere it does nothing.
    """
    if device.type != "cuda":
        yield
        return
    before, own = torch.cuda.current_stream(device), _stream(device)
    own.wait_stream(before)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        before.wait_stream(own)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=PRIORITY)
