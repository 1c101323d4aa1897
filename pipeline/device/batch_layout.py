"""A batch as one run of int32 words, so that one copy moves it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.rows import RowBatch


def tensors_of(batch: RowBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Label (R,), dense (D, R) and buckets (S, R) as tensors over the same memory."""
    return torch.from_numpy(batch.label), torch.from_numpy(batch.dense), torch.from_numpy(batch.buckets)


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """Where the parts of a batch lie in its words: dense columns, buckets, and last the labels' bytes, so that every
    column stays aligned."""

    rows: int
    dense: int
    sparse: int
    label: torch.dtype

    @classmethod
    def of(cls, batch: RowBatch) -> BatchLayout:
        """The layout of `batch`."""
        label, dense, buckets = tensors_of(batch)
        return cls(rows=len(label), dense=len(dense), sparse=len(buckets), label=label.dtype)

    @property
    def words(self) -> int:
        """How many words hold the batch."""
        return (self.dense + self.sparse) * self.rows - (-self.rows * self.label.itemsize // 4)

    def pack(self, batch: RowBatch, words: Tensor) -> None:
        """Copies `batch` into `words` (words,) int32."""
        for part, source in zip(self.unpack(words), tensors_of(batch), strict=True):
            part.copy_(source)

    def unpack(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Label (R,), dense (D, R) and buckets (S, R) as views of `words`, on any device."""
        columns = self.dense + self.sparse
        values = words[: columns * self.rows].view(columns, self.rows)
        label = words[columns * self.rows :].view(self.label)[: self.rows]
        return label, values[: self.dense], values[self.dense :]
