"""CPU time of the loader at 1, 2, 4 and 8 ranks over that of one, a rank and in all, for the same rows.

`python -m tests.bench.bench_ranks [--rows N] [--data DATA] [--ranks 1 2 4 8] [--shuffle KIND] [--pairing KIND]
[--rounds N] [--measured N]`.
Every rank is a process of its own that takes its share of every pair of whole epochs and does nothing with it; as many
run side by side as there are cores. Counted is the CPU time of all its threads, in the cheapest of its epochs after the
first, and the most memory it ever held; in all is the sum over the ranks of a host. All files come from a warm cache.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch

from pipeline.device import DataConfig, open_feed
from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.sample import SampleConfig, write_sample
from pipeline.shards import Manifest

BATCH_ROWS = 65_536
TABLE_ROWS = 4_194_304
EPOCHS = 5
THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one rank, for every row of the batches over all ranks."""

    cpu_seconds: float
    bytes: float


def cost(share: tuple[int, int], *, config: DataConfig) -> Cost:
    """What rank `share[0]` of `share[1]` spends, in this process."""
    rank, ranks = share
    manifest = Manifest.load(config.path)
    with open_feed(config, manifest, table_rows=TABLE_ROWS, device=torch.device("cpu"), rank=rank, ranks=ranks) as feed:
        assert feed.steps_per_epoch
        for _ in range(feed.steps_per_epoch):
            next(feed)
        spent = []
        for _ in range(EPOCHS):
            start, rows = time.process_time(), 0
            for _ in range(feed.steps_per_epoch):
                rows += next(feed).rows
            spent.append((time.process_time() - start) / rows)
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(cpu_seconds=min(spent), bytes=memory)


def costs(config: DataConfig, ranks: int, measured: int) -> list[Cost]:
    """Of the first `measured` ranks, each in a fresh process; the others do as much."""
    context = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
        return list(pool.map(partial(cost, config=config), [(rank, ranks) for rank in range(min(measured, ranks))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--data", type=Path, help="data folder to use instead of generated rows")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--shuffle", default="rows")
    parser.add_argument("--pairing", default="sliding")
    parser.add_argument("--probe-rows", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measured", type=int, default=8, help="of every number of ranks, so many")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data or folder / "data"
        if options.data is None:
            write_sample(SampleConfig(out=folder / "log", rows=options.rows))
            preprocess(PreprocessConfig(sources=(str(folder / "log"),), out=data, split="train"))
        config = DataConfig(
            path=str(data),
            batch_rows=BATCH_ROWS,
            probe_rows=options.probe_rows,
            shuffle=options.shuffle,
            pairing=options.pairing,
            read_threads=THREADS,
        )
        print(f"{options.shuffle}, {options.pairing}: over one rank's, for the same rows")
        rounds = [
            {ranks: costs(config, ranks, options.measured) for ranks in {1, *options.ranks}}
            for _ in range(options.rounds)
        ]
        for ranks in options.ranks:
            report(rounds, ranks)


def report(rounds: list[dict[int, list[Cost]]], ranks: int) -> None:
    """The cheapest round of each counts: other programs on the machine, by what they take of its caches, only add."""
    one = min((found[1][0] for found in rounds), key=lambda cost: cost.cpu_seconds)
    each = [
        min(found[ranks][rank].cpu_seconds for found in rounds) / one.cpu_seconds
        for rank in range(len(rounds[0][ranks]))
    ]
    memory = [max(found[ranks][rank].bytes for found in rounds) / one.bytes for rank in range(len(each))]
    print(
        f"{ranks} ranks: CPU time {mean(each):.2f} a rank (most {max(each):.2f}), {ranks * mean(each):.2f} in all; "
        f"memory {mean(memory):.2f} a rank",
        flush=True,
    )


if __name__ == "__main__":
    main()
