"""A batch as one run of int32 words, so that one copy moves it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.rows import RowBatch

BatchTensors = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Label (R,), dense (D, R), buckets (S, R), and weight (R,) float32 of data that has weights."""


def tensors_of(batch: RowBatch) -> BatchTensors:
    """The parts of a batch as tensors over the same memory."""
    weight = None if batch.weight is None else torch.from_numpy(batch.weight)
    return torch.from_numpy(batch.label), torch.from_numpy(batch.dense), torch.from_numpy(batch.buckets), weight


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """Where the parts of a batch lie in its words: dense columns, buckets, weights if there are any, and last the
    labels' bytes, so that every column stays aligned."""

    rows: int
    dense: int
    sparse: int
    label: torch.dtype
    weighted: bool

    @classmethod
    def of(cls, batch: RowBatch) -> BatchLayout:
        """The layout of `batch`."""
        label, dense, buckets, weight = tensors_of(batch)
        return cls(
            rows=len(label), dense=len(dense), sparse=len(buckets), label=label.dtype, weighted=weight is not None
        )

    @property
    def _columns(self) -> int:
        return self.dense + self.sparse + self.weighted

    @property
    def words(self) -> int:
        """How many words hold the batch."""
        return self._columns * self.rows - (-self.rows * self.label.itemsize // 4)

    def pack(self, batch: RowBatch, words: Tensor) -> None:
        """Copies `batch` into `words` (words,) int32."""
        for part, source in zip(self.unpack(words), tensors_of(batch), strict=True):
            if part is not None and source is not None:
                part.copy_(source)

    def unpack(self, words: Tensor) -> BatchTensors:
        """The parts as views of `words`, on any device."""
        columns = self._columns
        values = words[: columns * self.rows].view(columns, self.rows)
        label = words[columns * self.rows :].view(self.label)[: self.rows]
        weight = values[-1].view(torch.float32) if self.weighted else None
        return label, values[: self.dense], values[self.dense : self.dense + self.sparse], weight
