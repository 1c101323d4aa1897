"""The lines of a record file: where each lies, and how old ones are merged into blocks so that the file stays small.

For example:

    index = index_lines(path, one_a_step=True)
    write = thinning(path, index, done=1_000_000, full_steps=65_536, checkpoints=[990_000])
"""

from trainer.records.lines.index import Extent, LineIndex, index_lines, not_taken_back
from trainer.records.lines.steps import bin_middle
from trainer.records.lines.thinning import thinning

__all__ = ["Extent", "LineIndex", "bin_middle", "index_lines", "not_taken_back", "thinning"]
