"""What becomes of a run's records and its console, told to people and to Prometheus; it ends no run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ops.metrics import Metrics
from trainer.console import Console
from trainer.job.run_directory import RunDirectory

WARN_SECONDS = 600.0
"""While a file cannot be written that is said at first and then every so many seconds."""


class RecordWatch:
    """Looks after the record files of a run: `look` warns of what cannot be written, is missing, or is lost.

    `warn` is told each sentence with the step it belongs to; the run's event log should be among who hears it.
    """

    def __init__(
        self,
        directory: RunDirectory,
        metrics: Metrics,
        console: Console,
        *,
        warn: Callable[[str, int], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records, self._metrics, self._console, self._warn = directory.records, metrics, console, warn
        self._monotonic = monotonic
        self._lost = dict.fromkeys(self._records, 0)
        self._lost_lines = 0
        self._warned = dict.fromkeys(self._records, -math.inf)
        """When it was last said that the file cannot be written; minus infinity while it can."""

    def look(self, *, step: int) -> None:
        """Tells what has changed since the last look; cheap, to be called after every flush."""
        for name, file in self._records.items():
            self._metrics.records(name, waiting=file.waiting, lost=file.lost - self._lost[name])
            self._lost[name] = file.lost
            for notice in file.take_notices():
                self._warn(notice, step)
            self._tell_of_trouble(name, step)
        self._metrics.console_lines_lost(self._console.lost_lines - self._lost_lines)
        self._lost_lines = self._console.lost_lines

    def end(self, *, step: int) -> None:
        """Tells of records that still wait: nobody will write them when this process has ended."""
        for file in self._records.values():
            file.flush()
        self.look(step=step)
        for name, file in self._records.items():
            if file.waiting:
                self._metrics.records(name, waiting=0, lost=file.waiting)
                self._console.warn(
                    f"{file.path}: {file.waiting:,} records could not be written and end with this process; the "
                    "checkpoints are as they should be"
                )

    def _tell_of_trouble(self, name: str, step: int) -> None:
        file, now = self._records[name], self._monotonic()
        trouble = file.trouble
        if trouble is None:
            if self._warned[name] > -math.inf and not file.waiting:
                self._warned[name] = -math.inf
                self._warn(f"{file.path.name} is written again", step)
        elif now - self._warned[name] >= WARN_SECONDS:
            self._warned[name] = now
            lost = f", {file.lost:,} are lost" if file.lost else ""
            self._warn(
                f"{file.path}: cannot be written ({trouble.strerror or trouble}); training goes on, {file.waiting:,} "
                f"records wait in memory{lost}; make room there",
                step,
            )
