"""The CUDA streams that batches come on, one a role and device in all of a process, and how batches leave them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Role = Literal["feed", "evaluation"]
"""Whose batches come on a stream: those of a feed of pairs, or rows to evaluate on."""

_streams: dict[tuple[Role, int], torch.cuda.Stream] = {}


def upload_stream(role: Role, device: torch.device) -> torch.cuda.Stream:
    """The stream of `role` on the CUDA device `device`, the same whenever it is asked for.

    Torch has 32 streams of a priority and hands them out again from the first on: with a new one for every ring,
    evaluations would soon copy on the stream that the feed copies on, or α* is measured on. Two rings of one role
    share their stream, and their work is in order.
    """
    key = role, torch.cuda.current_device() if device.index is None else device.index
    if key not in _streams:
        _streams[key] = torch.cuda.Stream(device)
    return _streams[key]


def hand_over(tensors: Iterable[Tensor], ready: torch.cuda.Event | None) -> None:
    """Lets the current stream use `tensors`, made on another stream up to `ready`; None: nothing is to be done.

    The current stream waits for `ready`, the host for nothing, and the memory stays theirs until what the current
    stream has been given by the time they are freed is through.
    """
    if ready is None:
        return
    tensors = list(tensors)
    stream = torch.cuda.current_stream(tensors[0].device)
    stream.wait_event(ready)
    for tensor in tensors:
        tensor.record_stream(stream)
