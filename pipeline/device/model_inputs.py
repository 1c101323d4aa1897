"""Rows as the model takes them: AlgoPerf's logarithm, its float32 rounding of buckets, and the table's modulo."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from pipeline.rows import Moduli


class _Parts(NamedTuple):
    dense: Tensor
    """(R, D) float32: log(max(x, 0) + 1), missing as 0."""
    ids: Tensor
    """(S, R) int32: table rows."""
    label: Tensor
    """(R,) float32"""


class ModelInputs(_Parts):
    """One batch on its device: (dense, ids, label), and beside them a weight where the data has weights.

    Tensors may be strided views, and batches may share memory: do not write to them.
    """

    weight: Tensor | None = None
    """(R,) float32: how often each row counts; None of data without weights. Not one of the tuple's three."""

    @property
    def rows(self) -> int:
        return len(self.label)

    def head(self, rows: int) -> ModelInputs:
        """The first `rows` rows, as views."""
        first = ModelInputs(self.dense[:rows], self.ids[:, :rows], self.label[:rows])
        return first.weighed_by(None if self.weight is None else self.weight[:rows])

    def weighed_by(self, weight: Tensor | None) -> ModelInputs:
        """The same rows with these weights (R,), or none."""
        return ModelInputs(self.dense, self.ids, self.label) if weight is None else _weighed(tuple(self), weight)

    def tensors(self) -> list[Tensor]:
        """All that are there."""
        return [*self, *([] if self.weight is None else [self.weight])]


class _WeighedInputs(ModelInputs):
    """A batch with weights, which is not made of the three alone: loaders and trainers that copy a named tuple part by
    part (DataLoader, Lightning) would lose the weights without a word."""

    def __new__(cls, *parts: Tensor) -> NoReturn:
        raise TypeError(
            "a batch with weights is copied without them; hand on (batch.dense, batch.ids, batch.label, batch.weight), "
            "an ordinary tuple, instead of the batch"
        )

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> ModelInputs:
        return cls(*iterable)

    def _replace(self, **parts: Any) -> ModelInputs:
        return ModelInputs(*self)._replace(**parts).weighed_by(self.weight)

    __replace__ = _replace

    def __reduce__(self) -> tuple[Any, ...]:
        return _weighed, (tuple(self), self.weight)


def _weighed(parts: tuple[Tensor, ...], weight: Tensor) -> ModelInputs:
    inputs = tuple.__new__(_WeighedInputs, parts)
    inputs.weight = weight
    return inputs


def encoded_inputs(label: Tensor, dense: Tensor, buckets: Tensor, weight: Tensor | None = None) -> ModelInputs:
    """Model inputs from what the reader has encoded: label (R,) float32, dense (D, R) int32 that holds the bits of
    float32 logarithms, buckets (S, R) table rows, weight (R,) float32. Views; nothing is copied."""
    return ModelInputs(dense.view(torch.float32).T, buckets, label).weighed_by(weight)


def to_inputs(
    label: Tensor, dense: Tensor, buckets: Tensor, weight: Tensor | None = None, *, table_rows: Moduli
) -> ModelInputs:
    """Model inputs from label (R,) uint8, dense (D, R) int32, buckets (S, R) int32 and weight (R,) float32, on their
    own device.

    Table row = int32(float32(bucket)) mod table_rows (of its own column, where they differ): the rounding is the
    reference's, so buckets above 2²⁴ land on multiples of 2 or 4. Dense values are rounded to float32 before the
    logarithm, as there. `pipeline.rows.columns` does the same on the host, once for every entry of a dictionary.
    """
    logarithm = dense.clamp(min=0).to(torch.float32).add_(1).log_()
    ids = buckets.to(torch.float32).to(torch.int32)
    if not isinstance(table_rows, int):
        ids.remainder_(_moduli(table_rows, ids.device))
    elif table_rows & (table_rows - 1) == 0:
        ids.bitwise_and_(table_rows - 1)
    else:
        ids.remainder_(table_rows)
    own = None if weight is None else weight.clone()  # as all else is new: the words it came in may be used again
    return ModelInputs(logarithm.T, ids, label.to(torch.float32)).weighed_by(own)


@lru_cache(maxsize=16)
def _moduli(table_rows: tuple[int, ...], device: torch.device) -> Tensor:
    """(S, 1) int32; there once it is returned, for any stream."""
    return torch.tensor(table_rows, dtype=torch.int32, device=device).unsqueeze(1)
