"""The room on a run's disk: what the run will want of it, and what is free from moment to moment."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.shards import free_bytes
from trainer.records import held_bytes

STEP_RECORD_BYTES = 400
"""About what one step adds to the records."""
SAMPLE_SECONDS = 15.0
"""The free space is looked at so often."""
JOIN_SECONDS = 1.0
"""So long its end is waited for; a disk that hangs is left alone."""
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, kw_only=True)
class DiskForecast:
    """What a run will want of its disk, and what is there; all in bytes."""

    run: Path
    checkpoint_bytes: int
    """Of one checkpoint."""
    keep: int
    """Checkpoints that are kept; one more lies there while it is written."""
    held_bytes: int
    """Of checkpoints that lie there already, and go one by one as new ones come."""
    records_bytes: int
    """Of what the steps to come will record."""
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        """(keep + 1) · checkpoint + records − held: what must be free for all to fit."""
        return max((self.keep + 1) * self.checkpoint_bytes - self.held_bytes, 0) + self.records_bytes

    @property
    def warning(self) -> str | None:
        """What to tell people; None if all will fit.

        A warning, not an error: a disk is shared and gets room again, and a run that would be refused for it at a
        restart trains on meanwhile from what it has.
        """
        if self.free_bytes >= self.needed_bytes:
            return None
        one, free = size_text(self.checkpoint_bytes), size_text(self.free_bytes)
        if self.free_bytes + self.held_bytes < self.checkpoint_bytes:
            return (
                f"{self.run}: not one checkpoint fits on this disk: it takes {one}, and {free} are free; until there "
                "is room, nothing that is trained is kept"
            )
        return (
            f"{self.run}: this disk will be full: {self.keep + 1} checkpoints of {one} (checkpoint.keep = {self.keep}, "
            f"and the one being written) and about {size_text(self.records_bytes)} of records want "
            f"{size_text(self.needed_bytes)} more, and {free} are free; older checkpoints will have to go for newer "
            "ones: free space, or lower checkpoint.keep"
        )


def forecast_of(
    run: Path, *, checkpoint_bytes: int, keep: int, steps_to_come: int | None, full_steps: int = 0
) -> DiskForecast:
    """The forecast for a run as its disk is now; without an end to its steps, records are left out.

    Of the steps to come beyond `full_steps` records are merged (`trainer.records.lines`), unless that is 0.

    Raises: OSError if the disk cannot be asked.
    """
    return DiskForecast(
        run=run,
        checkpoint_bytes=checkpoint_bytes,
        keep=keep,
        held_bytes=held_bytes(run),
        records_bytes=STEP_RECORD_BYTES * _lines_of(steps_to_come or 0, full_steps),
        free_bytes=free_bytes(run / "checkpoints"),  # which may be a link to another disk
    )


@contextmanager
def watched_disk(path: Path, tell: Callable[[float], None]) -> Iterator[None]:
    """Within it `tell` is given the free bytes of the disk of `path`, at once and every `SAMPLE_SECONDS`.

    From a thread of its own: a disk that hangs holds neither training nor a scrape.
    """
    ended = threading.Event()

    def watch() -> None:
        while True:
            with suppress(OSError):
                tell(float(free_bytes(path)))
            if ended.wait(SAMPLE_SECONDS):
                return

    thread = threading.Thread(target=watch, name="disk-space", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(JOIN_SECONDS)


def _lines_of(steps: int, full_steps: int) -> int:
    """About how many lines so many steps leave: those of `full_steps`, and half as many for each doubling of them."""
    if not full_steps or steps <= full_steps:
        return steps
    return round(full_steps * (1 + 0.5 * math.log2(steps / full_steps)))


def size_text(size: float) -> str:
    """A number of bytes with three digits, such as 1.25 GB."""
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"
