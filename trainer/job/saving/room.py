"""One attempt at a checkpoint; where the disk is full, older ones make room for it if that is enough."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import cause_of
from trainer.records import SaveGroup, folder_bytes, make_room_on_ranks

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def lacks_space(error: OSError) -> bool:
    """Whether writing failed for want of space, on the disk or within a quota."""
    return error.errno in NO_SPACE


@dataclass(kw_only=True)
class SaveAttempt:
    """What an attempt did besides, complete once `write` has returned or raised; in any one thread."""

    run: Path
    needed_bytes: int
    """What the checkpoint will take."""
    group: SaveGroup
    """Of the ranks that save together, be it this one alone."""
    notes: list[str] = field(default_factory=list)
    """What people should be told of it."""
    seconds: float = 0.0
    bytes: int = 0
    """Of the checkpoint on disk, once it is there."""

    def write(self, write: Callable[[], Path]) -> Path:
        """`write()`, a second time if at first the disk is full and older checkpoints make room.

        Raises: what `write` raises, or what forbids the deletion of an older checkpoint.
        """
        began = time.monotonic()
        try:
            path = write()
        except OSError as error:
            if not lacks_space(error):
                raise
            if not (deleted := make_room_on_ranks(self.run, self.needed_bytes, group=self.group)):
                raise
            self.notes.append(f"{cause_of(error)}: deleted {', '.join(deleted)} to make room for a checkpoint")
            path = write()
        self.seconds, self.bytes = time.monotonic() - began, folder_bytes(path)
        return path

    def not_pruned(self, error: OSError) -> None:
        """For `write_checkpoint` to tell that older checkpoints stay."""
        where = f"{error.filename}: " if error.filename else ""
        self.notes.append(f"an older checkpoint cannot be deleted ({where}{cause_of(error)}); the new one is whole")
