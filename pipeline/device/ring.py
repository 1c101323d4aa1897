"""Host batches to model inputs on one device; on CUDA through a ring of pinned buffers and a stream of its own."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pipeline.device.batch_layout import BatchLayout, tensors_of
from pipeline.device.model_inputs import ModelInputs, encoded_inputs, to_inputs
from pipeline.device.streams import Role, upload_stream
from pipeline.rows import Moduli, RowBatch
from pipeline.stages import StageTotals

RING_SLOTS = 3


class Uploader(Protocol):
    """Makes model inputs of host batches, on one thread."""

    def upload(self, batch: RowBatch) -> ModelInputs:
        """`batch` on the device, perhaps still under way."""
        ...

    def mark(self) -> torch.cuda.Event | None:
        """An event after all uploads so far; None if they are complete already."""
        ...


class HostUploader:
    """Uploads to the CPU, as the reader has encoded the rows already: views of its memory, nothing is copied."""

    def __init__(self, stages: StageTotals) -> None:
        self._stages = stages

    def upload(self, batch: RowBatch) -> ModelInputs:
        with self._stages.timed("transfer", batch.rows):
            return encoded_inputs(*tensors_of(batch))

    def mark(self) -> None:
        return None


class PinnedRing:
    """Uploads to a CUDA device: pinned slot → one asynchronous copy → transform, on a side stream.

    Every slot has an event after its copy; a slot is filled again only once that event has passed, so a copy in
    flight never sees rows of a later batch. The thread that takes the batches waits for nothing: with `mark` they are
    handed over to its stream (`streams.hand_over`).
    """

    def __init__(
        self,
        device: torch.device,
        *,
        table_rows: Moduli,
        stages: StageTotals,
        role: Role = "feed",
        slots: int = RING_SLOTS,
    ) -> None:
        self._device, self._table_rows, self._stages = device, table_rows, stages
        self._stream = upload_stream(role, device)
        self._slots = [_Slot() for _ in range(slots)]
        self._turn = 0

    def upload(self, batch: RowBatch) -> ModelInputs:
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        layout = BatchLayout.of(batch)
        if (seconds := slot.wait()) is not None:
            self._stages.add("transfer", seconds, slot.rows)
        host = slot.buffer(layout.words)
        with self._stages.timed("collate", 0):  # the reader counts the rows of this stage
            layout.pack(batch, host)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            slot.began.record()
            copy = host.to(self._device, non_blocking=True)
            slot.copied.record()
            slot.rows = layout.rows
            return to_inputs(*layout.unpack(copy), table_rows=self._table_rows)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event


class _Slot:
    """Pinned memory for one batch, and events around its last copy to the device."""

    def __init__(self) -> None:
        self.began = torch.cuda.Event(enable_timing=True)
        self.copied = torch.cuda.Event(enable_timing=True, blocking=True)  # who waits for it leaves the core to others
        self.rows = 0
        self._memory: Tensor | None = None

    def wait(self) -> float | None:
        """Waits until the last copy from this slot is done; its duration in seconds, None before the first."""
        if self.rows == 0:
            return None
        self.copied.synchronize()
        return self.began.elapsed_time(self.copied) / 1000

    def buffer(self, words: int) -> Tensor:
        """(words,) int32 of pinned memory, the same every time while it is large enough."""
        if self._memory is None or len(self._memory) < words:
            self._memory = torch.empty(words, dtype=torch.int32, pin_memory=True)
        return self._memory[:words]


def make_uploader(device: torch.device, *, table_rows: Moduli, stages: StageTotals, role: Role = "feed") -> Uploader:
    """The uploader for `device`; on CUDA its batches come on the stream of `role`."""
    if device.type == "cuda":
        return PinnedRing(device, table_rows=table_rows, stages=stages, role=role)
    return HostUploader(stages)
