"""A run of two ranks to be disturbed: its configuration, how it ends undisturbed, and what to compare that with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.faults.fork_server import ForkServer
from tests.faults.forked_ranks import ForkedRanks
from tests.resume import lasting, same_bits
from tests.tiny_data import write_tiny
from trainer.records import read_records, verify_checkpoints

STEPS = 30
SETTINGS = """
[data]
path = "{data}"
batch_rows = 8
shuffle = "rows"
[model]
table_rows = 65
embedding_dim = 4
bottom = [4]
top = [4, 1]
[optimizer]
average = "ema"
[stepsize]
policy = "auto"
interval = 5
count = 5
[budget]
steps = 30
[eval]
every_steps = 16
[checkpoint]
every_steps = 10
keep = 10
keep_best = false
[ranks]
timeout_seconds = 60
[metrics]
port = -1
"""


LONG = ("--budget.steps", "300", "--eval.every-steps", "None", "--checkpoint.keep", "3")
"""Of a run that lasts long enough to be disturbed from outside."""


class RankRuns:
    """A run's configuration, ranks to train it, and how it ends undisturbed."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self.folder, self.ranks = folder, ForkedRanks(server, folder)
        self.data = write_tiny(folder / "data", {"train": [[20, 20]] * 6, "validation": [[17]], "test": [[16]]})
        self.config = folder / "config.toml"
        self.config.write_text(SETTINGS.format(data=self.data), encoding="utf-8")
        self.whole = self.ended(folder / "whole")

    def ended(self, run: Path, *more: str) -> Path:
        """A run that this command begins or goes on with, once that has ended well."""
        session = self.ranks.train(self.config, run, *more)
        assert session.end() == [0, 0], (session.said(0), session.said(1))
        return run

    def ends_as_whole(self, run: Path) -> None:
        """Asserts that a run ended as the undisturbed one."""
        same_end(run, self.whole)

    def goes_on(self, run: Path) -> None:
        """Asserts that the same command ends a run that was disturbed as the undisturbed one."""
        self.ends_as_whole(self.ended(run))


def same_end(run: Path, whole: Path) -> None:
    """Asserts that two runs ended alike to the last bit, and that the checkpoints of the first are sound."""
    (tensors, steps, estimates), (expected, all_steps, all_estimates) = lasting(run), lasting(whole)
    assert steps == all_steps
    assert estimates == all_estimates
    assert evaluations(run) == evaluations(whole)
    assert same_bits(tensors, expected)
    assert all(health.damage is None for health in verify_checkpoints(run))


def evaluations(run: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "training_seconds", "time", "unix_time")
    return [
        {key: value for key, value in record.items() if key not in timed}
        for record in read_records(run / "evals.jsonl")
    ]


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in read_records(run / "events.jsonl") if record["event"] in kinds]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir()) if (run / "checkpoints").exists() else []
