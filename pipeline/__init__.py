"""Click logs to Parquet shards, and shards to pairs of batches (B1, B2).

Its rooms, in the order of a row's way; each says in its first line what it is for, and exports what others may use.

    preprocess, once or day by day           a log's bytes → shards
        source         a log's bytes → blocks of whole lines
        encode         lines → columns
        parquet        columns → pages of a shard, and back
        shards         a data folder: its manifest and the files of its shards
        preprocess     the command that does all of this
        sample         logs of the same shape, to try it on
    reading, at every step of a training run   shards → pairs on the device
        shards, parquet → rows → device
        lines          a log's lines → rows in their order, to be scored
        examples       a training loop of one's own

For a training loop of one's own:

>>> with open_pairs("data", batch_rows=20, table_rows=1000, epochs=1) as pairs:
...     pair = next(pairs)  # or `for pair in pairs`: train on b2, measure on b1
...     state = pairs.state_dict()  # continues with the next pair
>>> pair.b2.dense.shape, pair.b2.ids.shape, pair.b2.label.shape
(torch.Size([20, 2]), torch.Size([3, 20]), torch.Size([20]))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.device import open_batches, open_pairs, open_split

__all__ = ["open_batches", "open_pairs", "open_split"]


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("pipeline.device"), name)
