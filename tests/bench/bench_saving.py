"""The longest step around a checkpoint: written beside training, against copying alone and against saving at once.

A dlrm-small with NAdamW, its table kept by rows, trains on skewed ids and saves in turn in both ways on one disk. What
brings the table up to date before is no part of the times: every way of saving needs it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bench.bench_table import GIGABYTE, Batch, Ours, batches
from trainer.job.save_thread import SaveThread
from trainer.records import HostMemory, save_checkpoint, write_checkpoint


@dataclass(kw_only=True)
class Training:
    """Steps, and what they are saved as."""

    subject: Ours
    stream: Iterator[Batch]
    run: Path
    saves: SaveThread
    memory: HostMemory = field(default_factory=HostMemory)
    steps: int = 0

    def content(self) -> tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Any]]:
        return {"model": self.subject.model.state_dict()}, {"optimizer": self.subject.optimizer.state_dict()}

    def step(self) -> float:
        """Seconds of one step."""
        batch = next(self.stream)
        start = time.perf_counter()
        self.subject.step(batch)
        self.steps += 1
        return time.perf_counter() - start

    def begin_save(self) -> float:
        """Seconds that training waits for a save beside it."""
        self.subject.flush()
        start = time.perf_counter()
        files = self.memory.snapshot(*self.content())
        assert files is not None, "too little memory"
        self.saves.begin(self.steps, lambda: write_checkpoint(self.run, self.steps, files, keep=1))
        return time.perf_counter() - start

    def steps_while_writing(self) -> list[float]:
        """Seconds of each step until the save that is under way has ended."""
        spent = []
        while (outcome := self.saves.take()) is None:
            spent.append(self.step())
        assert outcome.error is None, outcome.error
        return spent

    def copy_alone(self) -> float:
        """Seconds of a snapshot in memory that is kept."""
        self.subject.flush()
        content = self.content()
        start = time.perf_counter()
        self.memory.snapshot(*content)
        return time.perf_counter() - start

    def save_at_once(self) -> float:
        """Seconds of a save that training waits for."""
        self.subject.flush()
        start = time.perf_counter()
        tensors, state = self.content()
        save_checkpoint(self.run, self.steps, tensors=tensors, state=state, keep=1)
        return time.perf_counter() - start


def compare(training: Training, *, rounds: int, between: int) -> None:
    """Prints the ratios of each round's times; in a round both ways of saving take a turn."""
    for _ in range(between):
        training.step()
    first = training.begin_save()
    training.steps_while_writing()
    ratios: dict[str, list[float]] = {}
    for _ in range(rounds):
        wait = training.begin_save()
        beside = training.steps_while_writing()
        without = [training.step() for _ in beside]
        copy = training.copy_alone()
        at_once = training.save_at_once()
        usual = statistics.median(without)
        found = {
            "the wait for a save beside training over a copy alone": wait / copy,
            "the wait for a save beside training over the save at once": wait / at_once,
            "the longest step with a save beside it over one with the save at once": max(
                [wait + beside[0], *beside[1:]]
            )
            / (at_once + usual),
            "the longest step while a save is written over the longest of as many without": max(beside) / max(without),
            "the middle step while a save is written over one without": statistics.median(beside) / usual,
            "the first save's wait, which takes the memory, over the next one's": first / wait,
        }
        for name, ratio in found.items():
            ratios.setdefault(name, []).append(ratio)
    for name, values in ratios.items():
        print(f"  {name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table-rows", type=int, default=524_288)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--between", type=int, default=20, help="steps before the first save")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to save; by default the system's folder for temporary files")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    size = 3 * arguments.table_rows * 128 * 4 / GIGABYTE
    print(f"{arguments.table_rows:,} × 128, some {size:.2f} GiB a save, {torch.get_num_threads()} threads")
    try:
        with SaveThread() as saves:
            training = Training(
                subject=Ours(arguments.table_rows, "lazy"),
                stream=batches(arguments.rows, arguments.table_rows, seed=1),
                run=folder,
                saves=saves,
            )
            compare(training, rounds=arguments.rounds, between=arguments.between)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
