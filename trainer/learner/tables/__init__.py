"""Embedding tables whose rows make NAdamW's steps only when somebody looks at them, bit for bit as if they had.

For example:

    keep_by_rows(model)                          # embeddings' weights are LazyWeights from now on
    optimizer = LazyNAdamW(model.parameters())   # states are NAdamW's
"""

from __future__ import annotations

from trainer.learner.tables.table import LazyTable
from trainer.learner.tables.weight import (
    LazyNAdamW,
    LazyWeight,
    average_rounding,
    keep_by_rows,
    pays_by_rows,
    reading,
    reason_for_dense,
)

__all__ = [
    "LazyNAdamW",
    "LazyTable",
    "LazyWeight",
    "average_rounding",
    "keep_by_rows",
    "pays_by_rows",
    "reading",
    "reason_for_dense",
]
