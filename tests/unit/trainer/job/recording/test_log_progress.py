"""How far training has come in a log that grows: exact over generations that came meanwhile, empty ones included."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from ops.metrics import Metrics
from pipeline.rows import GrowingLog
from trainer.job.recording.log_progress import LogProgress


class Log:
    """So many training rows in each generation, and no other split."""

    def __init__(self, *rows: int) -> None:
        self.generations = [*rows]

    @property
    def count(self) -> int:
        return len(self.generations)

    def rows(self, split: str, index: int) -> int | None:
        assert split == "train"
        return self.generations[index] if index < self.count else None


def told(log: Log, progress: LogProgress, *, generation: int, rows: int) -> list[float]:
    metrics = Metrics()
    progress.tell(metrics, generation=generation, rows=rows)
    samples = {sample.name: sample.value for family in metrics.registry.collect() for sample in family.samples}
    names = ("generation", "generations_waiting", "log_rows", "log_rows_waiting")
    return [samples[f"alphastream_{name}"] for name in names]


def test_generations_and_rows_are_those_of_the_log_as_it_is() -> None:
    log = Log(100)
    progress = LogProgress(cast(GrowingLog, log))
    assert told(log, progress, generation=0, rows=40) == [0, 0, 100, 60]
    assert told(log, progress, generation=0, rows=100) == [0, 0, 100, 0]
    log.generations += [0, 30, 7]
    assert told(log, progress, generation=0, rows=100) == [0, 3, 137, 37]
    assert told(log, progress, generation=2, rows=10) == [2, 1, 137, 27]


def test_a_step_asks_for_no_generation_twice() -> None:
    asked: list[int] = []
    log = SimpleNamespace(count=3, rows=lambda split, index: asked.append(index) or 10)
    progress = LogProgress(cast(GrowingLog, log))
    for rows in range(5):
        progress.tell(Metrics(), generation=1, rows=rows)
    assert asked == [0, 1, 2]
