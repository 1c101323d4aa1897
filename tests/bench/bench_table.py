"""Training steps of dlrm-small on skewed ids: its table kept by rows against moved whole, and against AlgoPerf's own.

AlgoPerf's step is written out below in torch from its definition (DLRMsmall and its NAdamW): one table indexed by the
ids, its gradient whole, the optimizer one operation after the other, parameter by parameter.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.schema import CRITEO
from trainer.learner.model import ModelConfig, build_model
from trainer.learner.optimizers import OptimizerConfig, build_optimizer

SKEW = 1.25
"""Exponent of the ids' power law: 2,048 rows look up some 10,300 table rows, those of the real logs 9,200 to 9,700."""
PARTS = 4
"""Parts of a round; after each, the peers take their turns."""
GIGABYTE = 1 << 30

Batch = tuple[Tensor, Tensor, Tensor]
"""Dense features (R, 13), ids (26, R) and labels (R,)."""


def batches(rows: int, table_rows: int, seed: int) -> Iterator[Batch]:
    """Batches without end, equal for equal seeds."""
    generator = np.random.default_rng(seed)
    sizes = np.array(CRITEO.bucket_sizes, dtype=np.float64)[:, None]
    columns = np.arange(26, dtype=np.int64)[:, None]
    while True:
        uniform = generator.random((26, rows))
        rank = (((sizes ** (1 - SKEW) - 1) * uniform + 1) ** (1 / (1 - SKEW))).astype(np.int64)
        # scattered over the table as a hash would
        ids = (rank * 2_654_435_761 + columns * 2_650_845_021) % (1 << 47) % table_rows
        dense = generator.random((rows, 13), dtype=np.float32)
        label = (generator.random(rows) < 0.25).astype(np.float32)
        yield torch.from_numpy(dense), torch.from_numpy(ids), torch.from_numpy(label)


class Trained(Protocol):
    """A model with its optimizer."""

    def step(self, batch: Batch) -> float: ...
    def flush(self) -> None: ...


class Ours:
    """The trainer's model and NAdamW."""

    def __init__(self, table_rows: int, table: str) -> None:
        model = ModelConfig(preset="dlrm-small", table_rows=table_rows)
        self.model = build_model(model, dense_features=13, sparse_features=26, seed=0)
        config = OptimizerConfig(table=table).resolved("dlrm-small")  # pyright: ignore[reportArgumentType]
        self.optimizer = build_optimizer(config, self.model)

    def step(self, batch: Batch) -> float:
        dense, ids, label = batch
        loss = binary_cross_entropy_with_logits(self.model(dense, ids), label)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def flush(self) -> None:
        """What an evaluation over every row of the table would make of it."""
        self.model.table.weight.detach()[0].sum()


class AlgoPerf:
    """DLRMsmall and NAdamW as AlgoPerf defines them, in plain torch."""

    def __init__(self, table_rows: int) -> None:
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.rand(table_rows, 128) / table_rows**0.5)
        self.bottom = _mlp(13, 512, 256, 128, last=nn.ReLU())
        self.top = _mlp(506, 1024, 1024, 512, 256, 1)
        self.parameters = [self.table, *self.bottom.parameters(), *self.top.parameters()]
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.triangle = torch.triu_indices(27, 27)
        self.steps = 0

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        embedded = self.table[ids.T.reshape(-1)].view(len(dense), 26, 128)
        vectors = torch.cat([bottom[:, None], embedded], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        features = torch.cat([bottom, products[:, self.triangle[0], self.triangle[1]]], dim=1)
        return self.top(features).squeeze(1)

    def step(self, batch: Batch) -> float:
        dense, ids, label = batch
        loss = binary_cross_entropy_with_logits(self.forward(dense, ids), label)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        self.move(lr=0.0017486387539278373, beta1=0.93266073836, beta2=0.9955159689799007, decay=0.08121616522670176)
        return loss.item()

    @torch.no_grad()
    def move(self, *, lr: float, beta1: float, beta2: float, decay: float, eps: float = 1e-8) -> None:
        self.steps += 1
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for parameter, m, v in zip(self.parameters, self.first, self.second, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            parameter.mul_(1 - lr * decay)
            m.mul_(beta1).add_(gradient, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            ahead = (m * beta1).add_(gradient, alpha=1 - beta1)
            denominator = v.sqrt().div_(correction2**0.5).add_(eps)
            parameter.addcdiv_(ahead, denominator, value=-lr / correction1)

    def flush(self) -> None:
        pass


def _mlp(*widths: int, last: nn.Module | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1], *([last] if last else []))


SUBJECTS: dict[str, Callable[[int], Trained]] = {
    "lazy": lambda table_rows: Ours(table_rows, "lazy"),
    "dense": lambda table_rows: Ours(table_rows, "dense"),
    "algoperf": AlgoPerf,
}


def every_row(rows: int, table_rows: int) -> Iterator[Batch]:
    """Batches that together look up every row of the table at least once, in the order of the rows."""
    stream = batches(rows, table_rows, seed=0)
    for start in range(0, table_rows, 26 * rows):
        dense, _, label = next(stream)
        yield dense, (torch.arange(start, start + 26 * rows) % table_rows).view(26, rows), label


def compare(
    peers: list[str], *, table_rows: int, rows: int, warmup: int, flush_every: int, steps: int, rounds: int
) -> None:
    """Prints each peer's time a step over ours by rows: lowest, median and highest ratio of pairs measured in turns.

    The state is that of a long run: every row has been looked up and has moments, and then ours has made `warmup` steps
    on skewed ids and been read whole, as at an evaluation. A round is the `flush_every` steps to the next evaluation,
    in PARTS parts, after each of which every peer makes `steps` steps; a row is as many steps behind as such ids leave
    it, from none at the start of a round to all of the round. Each of our steps is charged its share of the read of the
    whole table that ends its round. What that leaves out: second moments that have become denormal, after some 20,000
    steps without a look-up. Peers are built anew for each turn, so that only one table lies beside ours.
    """
    ours, stream = SUBJECTS["lazy"](table_rows), batches(rows, table_rows, seed=1)
    print(f"{table_rows:,} × 128, {rows} rows a step, {torch.get_num_threads()} threads", flush=True)
    for batch in every_row(rows, table_rows):
        ours.step(batch)
    print("  every row has been looked up once", flush=True)
    seen = np.zeros(table_rows, dtype=np.bool_)
    for step in range(warmup):
        batch = next(stream)
        seen[batch[1].numpy()] = True
        ours.step(batch)
        if (step + 1) % 100 == 0:
            print(f"  {step + 1} steps on skewed ids, {seen.mean():.0%} of the rows looked up in them", flush=True)
    ours.flush()
    ratios: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(rounds):
        pairs: list[tuple[float, dict[str, float]]] = []
        for _ in range(PARTS):
            our_seconds = _seconds_a_step(ours, stream, flush_every // PARTS)
            pairs.append((our_seconds, {name: _of_a_new(name, table_rows, stream, steps) for name in peers}))
            print(f"  round {number + 1}: {len(pairs) * (flush_every // PARTS)} steps", flush=True)
        start = time.perf_counter()
        ours.flush()
        flush = (time.perf_counter() - start) / (flush_every // PARTS * PARTS)
        for our_seconds, by_peer in pairs:
            for name, seconds in by_peer.items():
                ratios[name].append(seconds / (our_seconds + flush))
        share = flush / (flush + statistics.fmean(our_seconds for our_seconds, _ in pairs))
        print(f"  reading the whole table every {flush_every} steps takes {share:.1%} of our time", flush=True)
    for name, found in ratios.items():
        median = statistics.median(found)
        print(
            f"  {name:10} takes {median:6.2f} times as long a step ({min(found):.2f} to {max(found):.2f})", flush=True
        )


def _of_a_new(name: str, table_rows: int, stream: Iterator[Batch], steps: int) -> float:
    """Seconds a step of a peer that has made its first."""
    peer = SUBJECTS[name](table_rows)
    peer.step(next(stream))
    return _seconds_a_step(peer, stream, steps)


def _seconds_a_step(subject: Trained, stream: Iterator[Batch], steps: int) -> float:
    """Mean over `steps` steps, without making the batches."""
    spent = 0.0
    for _ in range(steps):
        batch = next(stream)
        start = time.perf_counter()
        subject.step(batch)
        spent += time.perf_counter() - start
    return spent / steps


def peak_memory(name: str, *, table_rows: int, rows: int) -> None:
    """Prints the process's peak after a few steps of one subject, and a read of its whole table."""
    subject, stream = SUBJECTS[name](table_rows), batches(rows, table_rows, seed=1)
    for _ in range(3):
        subject.step(next(stream))
    subject.flush()
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage would count the parent's peak too
    kilobytes = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    print(f"  {name:10} has needed {kilobytes * 1024 / GIGABYTE:5.2f} GiB at most", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table-rows", type=int, default=4_194_304)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--warmup", type=int, default=300, help="steps of ours by rows before measuring")
    parser.add_argument("--steps", type=int, default=3, help="steps of each peer in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--flush-every", type=int, default=1000, help="steps of a round, between two reads of the table"
    )
    parser.add_argument("--peers", nargs="*", default=["dense", "algoperf"], choices=["dense", "algoperf"])
    parser.add_argument("--memory", choices=list(SUBJECTS), help="only print this one's peak memory")
    arguments = parser.parse_args()
    if arguments.memory:
        peak_memory(arguments.memory, table_rows=arguments.table_rows, rows=arguments.rows)
        return
    compare(
        arguments.peers,
        table_rows=arguments.table_rows,
        rows=arguments.rows,
        warmup=arguments.warmup,
        flush_every=arguments.flush_every,
        steps=arguments.steps,
        rounds=arguments.rounds,
    )
    for name in ["lazy", *arguments.peers]:  # a process each, since a peak never falls
        command = [sys.executable, "-m", "tests.bench.bench_table", "--memory", name]
        subprocess.run([*command, "--table-rows", str(arguments.table_rows), "--rows", str(arguments.rows)], check=True)


if __name__ == "__main__":
    main()
