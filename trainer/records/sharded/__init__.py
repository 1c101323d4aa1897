"""Checkpoints of several ranks: each writes the rows that it has, and any number of ranks reads the rows it wants.

For example, on each rank, with `mine` the rows of a table of 1000 that it has:

    shares = Shares(group=group, rows={("model", "table.weight"): mine})
    write_checkpoint(run, step, files, keep=3, shares=shares)
    load_latest_on_ranks(run, group=group, take=lambda file, name, shape: mine if name == "table.weight" else None)
"""

from trainer.records.sharded.group import RankFailedError, RanksDriftedError, SaveGroup, together
from trainer.records.sharded.reading import read_content
from trainer.records.sharded.rows import RowRange, Shares, Take
from trainer.records.sharded.writing import write_on_ranks

__all__ = [
    "RankFailedError",
    "RanksDriftedError",
    "RowRange",
    "SaveGroup",
    "Shares",
    "Take",
    "read_content",
    "together",
    "write_on_ranks",
]
