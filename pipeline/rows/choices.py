"""The choices of how rows are read, for configurations, which must not wait for compiled code to be imported."""

from __future__ import annotations

from typing import Literal

Shuffle = Literal["none", "files", "rows"]
"""See `Order`."""
Pairing = Literal["sliding", "disjoint", "held_out"]
"""See `PairSpans`."""
OnDamage = Literal["fail", "skip"]
"""What `RowReader` does with a row group that is damaged."""
Moduli = int | tuple[int, ...]
"""Rows of the embedding table that buckets are reduced to, by `mod`: one number for all sparse columns, or one each."""
