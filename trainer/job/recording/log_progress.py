"""How far training has come in a log that grows, told to the metrics."""

from __future__ import annotations

from ops.metrics import Metrics
from pipeline.rows import GrowingLog


class LogProgress:
    """Knows the rows of each generation of `log`, which never change once they are there."""

    def __init__(self, log: GrowingLog) -> None:
        self._log = log
        self._rows_up_to = [0]
        """Training rows of the first so many generations."""

    def tell(self, metrics: Metrics, *, generation: int, rows: int) -> None:
        """Training has come to `rows` of `generation`; cheap, to be called every step."""
        while len(self._rows_up_to) <= self._log.count:
            more = self._log.rows("train", len(self._rows_up_to) - 1)
            assert more is not None, "a generation that is counted is known"
            self._rows_up_to.append(self._rows_up_to[-1] + more)
        there = self._rows_up_to[-1]
        trained = self._rows_up_to[generation] + rows
        metrics.generations(
            generation,
            waiting=len(self._rows_up_to) - 2 - generation,
            rows=there,
            waiting_rows=max(there - trained, 0),
        )
