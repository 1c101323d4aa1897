"""A run to be asked: on a folder whose splits are, in order, the lines of one log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from trainer.cli import main

IN_SMALL_BATCHES = """
import os, sys, time
from trainer.serving import predicting, scored_rows, scores
predicting.COMMIT_SECONDS = 0.0
predicting.EVALUATION_BATCH_ROWS = scored_rows.EVALUATION_BATCH_ROWS = 512
held_at = int(os.environ.get("HELD_AT_LINES", "0"))
add = scores.KeptScores.add
def add_unless_held(kept, *arguments):
    while held_at and kept.lines >= held_at:
        time.sleep(0.01)
    add(kept, *arguments)
scores.KeptScores.add = add_unless_held
from trainer.cli import main
sys.exit(main())
"""
"""A program as `alphastream`, whose predict stays at HELD_AT_LINES of its environment until somebody interrupts it."""


@dataclass(frozen=True)
class Trained:
    run: Path
    data: Path
    lines: list[bytes]
    """Of the whole log, in the order of the splits."""

    def predict(self, *arguments: object) -> int:
        return main(["predict", str(self.run), *map(str, arguments)])


def train_on(lines: list[bytes], folder: Path) -> Trained:
    """A run that averages its weights, on the lines as a data folder, in `folder`."""
    (folder / "log.tsv").write_bytes(b"\n".join(lines) + b"\n")
    shares = ["--validation", "0.1", "--test", "0.1"]
    assert main(["preprocess", str(folder / "log.tsv"), "--out", str(folder / "data"), *shares]) == 0
    config = folder / "config.toml"
    config.write_text(
        f'[data]\npath = "{folder / "data"}"\nbatch_rows = 256\n[model]\ntable_rows = 1000\n[optimizer]\n'
        'average = "ema"\n[budget]\nsteps = 20\n[metrics]\nport = -1\n'
    )
    assert main(["train", str(config), "--run", str(folder / "run")]) == 0
    return Trained(folder / "run", folder / "data", lines)


def scores_in(path: Path) -> np.ndarray:
    table = pq.read_table(path)
    assert table.column_names == ["probability"]
    return table["probability"].to_numpy()


def same_floats(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two float32 arrays are the same to the bit."""
    return one.dtype == other.dtype == np.float32 and np.array_equal(one.view(np.uint32), other.view(np.uint32))
