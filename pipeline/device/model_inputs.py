"""Rows as the model takes them: AlgoPerf's logarithm, its float32 rounding of buckets, and the table's modulo."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ModelInputs(NamedTuple):
    """One batch on its device. Tensors may be strided views, and batches may share memory: do not write to them."""

    dense: Tensor
    """(R, D) float32: log(max(x, 0) + 1), missing as 0."""
    ids: Tensor
    """(S, R) int32: table rows."""
    label: Tensor
    """(R,) float32"""

    @property
    def rows(self) -> int:
        return len(self.label)

    def head(self, rows: int) -> ModelInputs:
        """The first `rows` rows, as views."""
        return ModelInputs(self.dense[:rows], self.ids[:, :rows], self.label[:rows])


def encoded_inputs(label: Tensor, dense: Tensor, buckets: Tensor) -> ModelInputs:
    """Model inputs from what the reader has encoded: label (R,) float32, dense (D, R) int32 that holds the bits of
    float32 logarithms, buckets (S, R) table rows. Views; nothing is copied."""
    return ModelInputs(dense.view(torch.float32).T, buckets, label)


def to_inputs(label: Tensor, dense: Tensor, buckets: Tensor, *, table_rows: int) -> ModelInputs:
    """Model inputs from label (R,) uint8, dense (D, R) int32 and buckets (S, R) int32, on their own device.

    Table row = int32(float32(bucket)) mod table_rows: the rounding is the reference's, so buckets above 2²⁴ land on
    multiples of 2 or 4. Dense values are rounded to float32 before the logarithm, as there. `pipeline.rows.columns`
    does the same on the host, once for every entry of a dictionary.
    """
    logarithm = dense.clamp(min=0).to(torch.float32).add_(1).log_()
    ids = buckets.to(torch.float32).to(torch.int32)
    if table_rows & (table_rows - 1) == 0:
        ids.bitwise_and_(table_rows - 1)
    else:
        ids.remainder_(table_rows)
    return ModelInputs(logarithm.T, ids, label.to(torch.float32))
