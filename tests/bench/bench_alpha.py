"""One α* against a forward and backward pass of the same rows, a training step, curvlinops, and the original way.

Every figure is the median over rounds of a ratio within a round, in which all take their turn.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from curvlinops import GGNLinearOperator
from torch import Tensor, nn

from stepsize import BCEWithLogits, StepSizeWorker
from trainer.learner import ModelConfig, OptimizerConfig, build_model, build_optimizer

PLAIN = "α*, one JVP"
SLOW_ROWS = 1_000_000
"""The largest table that curvlinops and the original way take their turns on: they hold it ten times over."""
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}

Batch = tuple[tuple[Tensor, Tensor], Tensor]


class OneArgument(nn.Module):
    """The model as a function of one mapping, which is what curvlinops hands on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(*inputs.values())[:, None]


class Subject:
    """DLRM-small with a table of `table_rows` rows, trained by NAdamW on random rows, and each way to its α*."""

    def __init__(self, table_rows: int, rows: int, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.rows, self.table_rows = rows, table_rows
        config = ModelConfig(preset="dlrm-small", table_rows=table_rows)
        self.model = build_model(config, dense_features=13, sparse_features=26, seed=0)
        self.optimizer = build_optimizer(OptimizerConfig(table="dense"), self.model)
        self.loss = nn.BCEWithLogitsLoss()
        self.workers = {
            PLAIN: StepSizeWorker(self.model, self.optimizer, BCEWithLogits()),
            "α*, one JVP in bfloat16": StepSizeWorker(
                self.model,
                self.optimizer,
                BCEWithLogits(),
                forward_context=partial(torch.autocast, "cpu", torch.bfloat16),
            ),
            "α*, secant": StepSizeWorker(self.model, self.optimizer, BCEWithLogits(), method="secant"),
            "α*, an eighth of the rows": StepSizeWorker(
                self.model, self.optimizer, BCEWithLogits(), probe_fraction=0.125, take_rows=_first
            ),
        }
        self.generator = torch.Generator().manual_seed(0)

    def seconds(self, call: Callable[[], object]) -> float:
        """What the call takes by the chosen clock."""
        start = self.clock()
        call()
        return self.clock() - start

    def batch(self) -> Batch:
        dense = torch.rand(self.rows, 13, generator=self.generator)
        ids = torch.randint(self.table_rows, (26, self.rows), generator=self.generator, dtype=torch.int32)
        return (dense, ids), (torch.rand(self.rows, generator=self.generator) < 0.25).float()

    def gradient(self, batch: Batch, *, sparse: bool) -> None:
        """One forward and backward pass, the table's gradient by rows or as a whole."""
        self.model.table.sparse = sparse
        self.optimizer.zero_grad(set_to_none=True)
        inputs, targets = batch
        self.loss(self.model(*inputs), targets).backward()

    def training_step(self, batch: Batch) -> None:
        self.gradient(batch, sparse=False)
        self.optimizer.step()

    def estimates(self, b1: Batch, b2: Batch, *names: str) -> dict[str, float]:
        """Seconds that each worker takes around the same step; the step itself is not counted."""
        self.gradient(b2, sparse=False)
        workers = {name: self.workers[name] for name in names or self.workers}
        before = {n: self.seconds(lambda w=w: w.before_step(*b1, step=0)) for n, w in workers.items()}
        self.optimizer.step()
        after = {n: self.seconds(w.after_step) for n, w in workers.items()}
        for worker in workers.values():
            worker.poll()
        return {name: before[name] + after[name] for name in workers}

    def operator(self, b1: Batch, *, check: bool) -> Any:
        (dense, ids), targets = b1
        return GGNLinearOperator(
            OneArgument(self.model),
            self.loss,
            list(self.model.parameters()),
            [({"dense": dense, "ids": ids}, targets[:, None])],
            check_deterministic=check,
            batch_size_fn=lambda _: len(targets),
        )

    def by_curvlinops(self, b1: Batch, direction: list[Tensor], *, check: bool) -> None:
        """B1's gradient and the Gauss-Newton product, on the device."""
        self.gradient(b1, sparse=False)
        sum((p.grad * d).sum() for p, d in zip(self.model.parameters(), direction, strict=True) if p.grad is not None)
        product = self.operator(b1, check=check) @ direction
        sum((c * d).sum() for c, d in zip(product, direction, strict=True))

    def by_the_original_way(self, b1: Batch, direction: list[Tensor]) -> None:
        """The operator rebuilt with its default check, gradient, direction and product as vectors on the host."""
        self.gradient(b1, sparse=False)
        gradient = np.concatenate([p.grad.cpu().numpy().ravel() for p in self.model.parameters() if p.grad is not None])
        along = np.concatenate([d.cpu().numpy().ravel() for d in direction])
        product = self.operator(b1, check=True).to_scipy() @ along
        _ = -(along @ gradient) / (along @ product)


def _first(inputs: tuple[Any, ...], targets: Tensor, rows: int) -> tuple[tuple[Any, ...], Tensor]:
    return (inputs[0][:rows], inputs[1][:, :rows]), targets[:rows]


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_peak_memory(subject: Subject) -> None:
    """Prints what α* adds to the peak of this process, which must have done nothing larger before."""
    subject.training_step(subject.batch())
    without = peak_bytes()
    for _ in range(2):
        subject.estimates(subject.batch(), subject.batch(), PLAIN)
    model_bytes = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    print(f"peak memory beside a training step: {(peak_bytes() - without) / model_bytes:.1%} of the model's own")


def compare(subject: Subject, *, rounds: int, slow_rounds: int) -> None:
    """Print each way's time over a forward and backward pass and over a training step."""
    subject.estimates(subject.batch(), subject.batch())  # each learns the look-ups once
    passes, steps = "forward + backward, row gradients", "training step, NAdamW"
    turns: list[dict[str, float]] = []
    for turn in range(rounds):
        b1, b2 = subject.batch(), subject.batch()
        seconds = {
            passes: subject.seconds(lambda b1=b1: subject.gradient(b1, sparse=True)),
            "forward + backward, whole table's gradient": subject.seconds(
                lambda b1=b1: subject.gradient(b1, sparse=False)
            ),
            steps: subject.seconds(lambda b2=b2: subject.training_step(b2)),
        }
        seconds |= subject.estimates(b1, b2)
        if turn < slow_rounds:
            d = [torch.randn_like(p).mul_(1e-3) for p in subject.model.parameters()]
            slow = {
                "curvlinops G @ d, no check": lambda b1=b1, d=d: subject.by_curvlinops(b1, d, check=False),
                "curvlinops G @ d, default check": lambda b1=b1, d=d: subject.by_curvlinops(b1, d, check=True),
                "the original way": lambda b1=b1, d=d: subject.by_the_original_way(b1, d),
            }
            seconds |= {name: subject.seconds(call) for name, call in slow.items()}
        turns.append(seconds)
    print(f"{'':44}  / forward+backward  / training step")
    for name in turns[0]:
        ratios = [[turn[name] / turn[base] for turn in turns if name in turn] for base in (passes, steps)]
        print(f"{name:44}  {statistics.median(ratios[0]):16.2f}  {statistics.median(ratios[1]):15.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table-rows", type=int, nargs="+", default=[4_194_304, SLOW_ROWS])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow-rounds", type=int, default=1, help="rounds with curvlinops, on small tables")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: with one thread, for a machine that is not idle"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for table_rows in arguments.table_rows:
        print(
            f"DLRM-small, {table_rows:,} x 128 table, {arguments.rows} rows, {arguments.threads} threads, "
            f"{arguments.clock} time"
        )
        subject = Subject(table_rows, arguments.rows, CLOCKS[arguments.clock])
        if table_rows == max(arguments.table_rows):
            print_peak_memory(subject)
        slow_rounds = arguments.slow_rounds if table_rows <= SLOW_ROWS else 0
        compare(subject, rounds=arguments.rounds, slow_rounds=slow_rounds)
        del subject


if __name__ == "__main__":
    main()
