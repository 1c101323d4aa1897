"""The rule by which a run's record files stay small, applied to one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from trainer.records.lines.blocks import Merge, block_levels, to_merge, write_merged
from trainer.records.lines.estimates import merge_estimates
from trainer.records.lines.index import LineIndex
from trainer.records.lines.steps import merge_steps

MERGES: dict[str, Merge] = {"steps": merge_steps, "alpha": merge_estimates}
"""How two lines become one, by the file that is thinned."""
FIRST_STEPS = 1
"""The first step waits for the pipeline to fill and for compilation: it stays apart."""


def thinning(
    path: Path, index: LineIndex, *, done: int, full_steps: int, checkpoints: Sequence[int]
) -> Callable[[BinaryIO], None] | None:
    """What writes the lines of `path` as they should be after `done` steps; None if they are so already.

    A function of the records, `done` and the steps of the `checkpoints` alone.
    """
    kept = [FIRST_STEPS, *checkpoints]
    levels = block_levels(index.step, index.last, done=done, full_steps=full_steps, kept=kept)
    if not to_merge(index, levels).any():
        return None

    def write(out: BinaryIO) -> None:
        with path.open("rb") as source:
            write_merged(out, source, index, levels, MERGES[path.stem])

    return write
