"""predict of a log against what it is made of: the encoding of the same lines, and the evaluation of their rows.

`python -m tests.bench.bench_predict [--rows N]`. Of one generated log and the data folder made of it, in turn: predict
of the log into a Parquet file, its lines encoded alone, the lines preprocessed into shards, and the same rows evaluated
from shards. A model that is trained for a few steps costs as much as any other of its size.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.device import open_lines
from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.sample import SampleConfig, write_sample
from pipeline.source import find_sources
from trainer.config import config_from
from trainer.console import Console
from trainer.job import EVALUATION_BATCH_ROWS, train
from trainer.serving import evaluate_run, open_run, predict_run

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""Where others use the machine too, the processor's time is the one to go by."""


def seconds_of(work: Callable[[], object]) -> np.ndarray:
    """By each clock."""
    began = [clock() for clock in CLOCKS.values()]
    work()
    return np.array([clock() for clock in CLOCKS.values()]) - began


def compare(folder: Path, *, rows: int, rounds: int, preset: str, table_rows: int) -> None:
    """Prints the middle of each round's ratios."""
    log, data, run = folder / "log", folder / "data", folder / "run"
    write_sample(SampleConfig(out=log, rows=rows))
    preprocess(PreprocessConfig(sources=(str(log),), out=data, validation=0.0, test=0.0))
    values = {
        "data": {"path": str(data)},
        "model": {"preset": preset, "table_rows": table_rows},
        "budget": {"steps": 3},
        "eval": {"splits": []},
        "metrics": {"port": -1},
    }
    train(config_from(values, where="benchmark"), run, console=Console(quiet=True))
    opened, sources = open_run(run), find_sources([log]).sources

    def encode() -> None:
        for _ in open_lines(
            sources,
            opened.log_format,
            table_rows=opened.learner.table_rows,
            device=torch.device("cpu"),
            batch_rows=EVALUATION_BATCH_ROWS,
        ):
            pass

    def to_shards(turn: int) -> None:
        preprocess(
            PreprocessConfig(sources=(str(log),), out=folder / f"data-{turn}", workers=1, validation=0.0, test=0.0)
        )

    ratios: dict[str, list[np.ndarray]] = {}
    for turn in range(rounds + 1):
        out = str(folder / f"scores-{turn}.parquet")
        open_seconds = seconds_of(lambda: open_run(run))  # of both, and of neither's work
        whole = seconds_of(lambda out=out: predict_run(run, [str(log)], out)) - open_seconds
        encoding = seconds_of(encode)
        evaluation = seconds_of(lambda: evaluate_run(run, split="train", rows=None, data=str(data))) - open_seconds
        shards = seconds_of(lambda turn=turn: to_shards(turn))
        if not turn:
            continue  # compiles, and reads what was not in memory
        found = {
            "predict over encoding and evaluation one after the other": whole / (encoding + evaluation),
            "encoding alone over predict": encoding / whole,
            "evaluation from shards over predict": evaluation / whole,
            "predict over preprocess into shards (one worker) and evaluation": whole / (shards + evaluation),
        }
        for name, ratio in found.items():
            ratios.setdefault(name, []).append(ratio)
    print(f"{preset}, {table_rows:,} table rows, {rows:,} lines, {torch.get_num_threads()} threads, {rounds} rounds")
    for place, clock in enumerate(CLOCKS):
        for name, found in ratios.items():
            each = [float(ratio[place]) for ratio in found]
            print(f"  {clock}: {name}: {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="dlrm-tiny")
    parser.add_argument("--table-rows", type=int, default=262_144)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-predict-") as folder:
        compare(
            Path(folder),
            rows=arguments.rows,
            rounds=arguments.rounds,
            preset=arguments.preset,
            table_rows=arguments.table_rows,
        )


if __name__ == "__main__":
    main()
