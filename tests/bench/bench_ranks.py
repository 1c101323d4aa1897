"""CPU time of the loader at 1, 2, 4 and 8 ranks over that of one, for the same rows; what agreeing adds to a step.

`python -m tests.bench.bench_ranks [--rows N] [--data DATA] [--ranks 1 2 4 8] [--shuffle KIND] [--pairing KIND]
[--rounds N] [--measured N] [--steps N] [--only loader|agreement|wire]`.
Every rank is a process of its own that takes its share of every pair of whole epochs and does nothing with it; as many
run side by side as there are cores. Counted is the CPU time of all its threads, in the cheapest of its epochs after the
first, and the most memory it ever held; in all is the sum over the ranks of a host. All files come from a warm cache.
Before that, what some rows of one row group cost on one thread.

The agreement (only if asked for): whole training steps on gloo, one thread a rank, by turns one that ends with what all
ranks agree on (to stop, save, and so on) and one that does not; medians of the first over those of the others.

The wire (only if asked for, in a network namespace where nothing else is said): bytes that the loopback device has sent
over those that the ranks have counted.
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
from statistics import mean, median

import numpy as np
import torch
from numpy.typing import NDArray

from ops.step_clock import StepClock
from pipeline.device import DataConfig, open_feed
from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.rows import GroupReader
from pipeline.sample import SampleConfig, write_sample
from pipeline.shards import Manifest, open_shards
from pipeline.stages import StageTotals
from tests.unit.trainer.ranks.processes import on_ranks
from trainer.config import config_from
from trainer.job import open_training
from trainer.job.ranks import Agreement
from trainer.ranks import Ranks
from trainer.step import TrainStep

BATCH_ROWS = 65_536
TABLE_ROWS = 4_194_304
EPOCHS = 5
THREADS = 2
STEPS = (("dlrm-tiny", 256), ("dlrm-tiny", 8192))
"""Whose steps are timed: a small one, of which an agreement is the most, and one that is more like work."""
WIRE_NUMBERS, WIRE_TIMES = 1_000_003, 5
Timed = tuple[bool, float, float]
"""Whether a step agreed, its seconds by the clock and of CPU time."""


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
    parser.add_argument("--steps", type=int, default=400, help="with and without an agreement, together")
    parser.add_argument(
        "--only", choices=("loader", "agreement", "wire"), default="loader", help="default: %(default)s"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only == "wire":
            for ranks in options.ranks:
                report_wire(on_ranks(ranks, wired, folder=folder))
            return
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
        if options.only == "agreement":
            for ranks in (number for number in options.ranks if number > 1):
                for preset, batch_rows in STEPS:
                    found = on_ranks(ranks, agreeing, str(data), preset, batch_rows, options.steps, folder=folder)
                    report_agreement(found, preset, batch_rows)
            return
        row_group(data)
        print(f"{options.shuffle}, {options.pairing}: over one rank's, for the same rows")
        rounds = [
            {ranks: costs(config, ranks, options.measured) for ranks in {1, *options.ranks}}
            for _ in range(options.rounds)
        ]
        for ranks in options.ranks:
            report(rounds, ranks)


def agreeing(ranks: Ranks, data: str, preset: str, batch_rows: int, steps: int) -> list[Timed]:
    """Of each step of this rank: whether it ended with an agreement, and what it took."""
    values = {
        "data": {"path": data, "batch_rows": batch_rows},
        "model": {"preset": preset, "table_rows": 262_144},
        "budget": {"steps": steps},
    }
    config, manifest = config_from(values, where="the benchmark"), Manifest.load(data)
    agreement, timed = Agreement(ranks=ranks), []
    with open_training(config, manifest, ranks=ranks) as state:
        learner = state.learner
        train_step = TrainStep(
            model=learner.model,
            optimizer=learner.optimizer,
            worker=state.worker,
            horizon=state.horizon,
            average=None,
            clock=StepClock(),
            ranks=ranks,
        )
        state.feed.fill()
        for step in range(steps):
            wall, processor = time.perf_counter(), time.process_time()
            trained = train_step(next(state.feed), step=step, learning_rate=1e-3, measure=False)
            trained.loss.item()
            if agrees := step % 2 == 0:
                agreement.reach(stop=False)
            timed.append((agrees, time.perf_counter() - wall, time.process_time() - processor))
    return timed[steps // 10 // 2 * 2 :]


def report_agreement(found: list[list[Timed]], preset: str, batch_rows: int) -> None:
    """Over all ranks and steps."""
    clocks = []
    for clock in (1, 2):
        with_it, without = (
            median([one[clock] for steps in found for one in steps if one[0] is agrees]) for agrees in (True, False)
        )
        clocks.append(with_it / without)
    print(
        f"{len(found)} ranks, {preset}, batches of {batch_rows:,}: a step with its agreement takes {clocks[0]:.3f} of "
        f"one without by the clock, {clocks[1]:.3f} by CPU time",
        flush=True,
    )


def wired(ranks: Ranks) -> dict[str, tuple[int, int]]:
    """Bytes that the loopback device has sent, and that this rank has counted, by what was done."""
    values, found = torch.ones(WIRE_NUMBERS), {}
    each = [WIRE_NUMBERS // ranks.ranks] * ranks.ranks
    done = {
        "all-reduce": lambda: ranks.sum(values, what="wire"),
        "all-to-all": lambda: ranks.exchange(values[: sum(each)], give=each, take=each, what="wire"),
    }
    for name, act in done.items():
        ranks.sent_bytes.clear()
        ranks.gather([0.0])
        before = _loopback_bytes()
        ranks.gather([0.0])  # nobody has begun before all have read
        for _ in range(WIRE_TIMES):
            act()
        ranks.gather([0.0])
        found[name] = (_loopback_bytes() - before, ranks.sent_bytes["wire"])
        ranks.gather([0.0])
    return found


def _loopback_bytes() -> int:
    [line] = [line for line in Path("/proc/self/net/dev").read_text(encoding="utf-8").splitlines() if "lo:" in line]
    return int(line.split(":")[1].split()[8])


def report_wire(found: list[dict[str, tuple[int, int]]]) -> None:
    for name, (sent, _) in found[0].items():
        print(
            f"{len(found)} ranks, {name}: {sent / sum(one[name][1] for one in found):.4f} of what is counted",
            flush=True,
        )


def row_group(data: Path) -> None:
    """What looking up some rows of one row group costs this thread, over decoding and shuffling all of them."""
    manifest = Manifest.load(data)
    shards = manifest.splits["train"].shards
    files = open_shards(manifest, "train", cache_path=None, cache_bytes=None, stages=StageTotals())
    groups = GroupReader(files, shards, manifest.format, compression=manifest.compression, table_rows=TABLE_ROWS)
    rows = shards[0].row_groups[0]
    order = np.random.default_rng(0).permutation(rows).astype(np.uint32)
    columns = len(manifest.format.dense) + len(manifest.format.sparse)

    def seconds(some: NDArray[np.uint32]) -> float:
        label, values = np.empty(len(some), np.float32), np.empty((columns, len(some)), np.int32)
        spent = []
        for _ in range(20):
            start = time.thread_time()
            groups.read(0, 0, label, list(values), some, group_rows=rows)
            spent.append(time.thread_time() - start)
        return min(spent)

    whole = seconds(order)
    parts = [f"1/{part} {seconds(order[: rows // part]) / whole:.2f}" for part in (2, 3, 4, 8, 16)]
    print(
        f"one row group, rows looked up over all: {', '.join(parts)}, none {seconds(order[:0]) / whole:.2f}", flush=True
    )
    groups.close()


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
