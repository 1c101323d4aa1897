"""What measuring costs a whole run: one job with `observe` or `auto` and with `none`, step by step on the same rows.

`python -m tests.bench.bench_overhead [--data DATA] [--policy auto]`. Both jobs train from the same start and do the
same steps, one step each in turn, so that a machine whose speed drifts, or that others use too, slows both. With
`observe` they change roles after every interval, so that it doesn't matter whose memory lies better; with `auto` the
job that does not measure takes the other's rate at each step. A pair's difference is what measuring cost that step,
for `auto` with the snapshots that it keeps. All are put together twice: from sums, which hold everything and every
disturbance too, and from the medians over measured and over unmeasured steps, each times how many there are, with the
standard error.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from ops.step_clock import StepClock
from pipeline.shards import Manifest
from stepsize.policies import NO_HORIZON
from tests.bench.rows import add_data_argument, data_folder
from trainer.config import config_from
from trainer.job import open_training
from trainer.learner import learning_rate
from trainer.step import TrainStep

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Seconds = dict[str, float]
"""By clock."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A step of one job."""

    measured: bool
    """Something was measured at it, or kept to be."""
    seconds: Seconds


class Job:
    """One training job as the daemon puts it together, less its records, metrics, evaluations and checkpoints."""

    def __init__(self, data: Path, arguments: argparse.Namespace, stack: ExitStack) -> None:
        values = {
            "data": {"path": str(data), "batch_rows": arguments.batch_rows},
            "model": {"preset": arguments.preset, "table_rows": arguments.table_rows},
            "optimizer": {"table": arguments.table} if arguments.table else {},
            "stepsize": {"policy": arguments.policy},
            "budget": {"steps": arguments.interval * arguments.intervals},
        }
        if arguments.policy == "observe":
            values["stepsize"] |= {"interval": arguments.interval, "count": arguments.count}
        config, manifest = config_from(values, where="benchmark"), Manifest.load(data)
        self.state = stack.enter_context(open_training(config, manifest))
        self.peak = learning_rate(self.state.learner.optimizer)
        self.train_step = TrainStep(
            model=self.state.learner.model,
            optimizer=self.state.learner.optimizer,
            worker=self.state.worker,
            horizon=self.state.horizon,
            average=None,
            clock=StepClock(),
        )
        self.step = 0

    @property
    def rate(self) -> float:
        """Of the step to come, as the policy has it."""
        return self.state.policy.learning_rate(self.step, self.peak)

    def run(self, *, measuring: bool, rate: float) -> Done:
        """One step, with the policy's measurements or without."""
        began = {name: clock() for name, clock in CLOCKS.items()}
        policy = self.state.policy
        pair = next(self.state.feed)
        plan = policy.horizon(self.step + 1) if measuring else NO_HORIZON
        measure = measuring and pair.fresh and policy.wants(self.step)
        self.train_step(pair, step=self.step, learning_rate=rate, measure=measure, plan=plan)
        for estimate in self.state.worker.poll(step=self.step):
            policy.observe(estimate)
        self.step += 1
        seconds = {name: clock() - began[name] for name, clock in CLOCKS.items()}
        return Done(measured=measure or plan.keep or plan.since is not None, seconds=seconds)


def median_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The median and its standard error, from the median distance to it as if the values were normal."""
    median = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - median) for value in values)
    return median, 1.2533 * spread / math.sqrt(len(values))


def report(plain: Sequence[Seconds], extra: Sequence[Seconds], measured: Sequence[bool]) -> None:
    """One line a clock: what a measured and an unmeasured step cost more, and what all of them do together."""
    print(f"{'':10}  measured step  unmeasured step    all, by medians    all, by sums")
    for clock in CLOCKS:
        step = statistics.median(seconds[clock] for seconds in plain)
        total, variance, each = 0.0, 0.0, []
        for kind in (True, False):
            values = [seconds[clock] for seconds, flag in zip(extra, measured, strict=True) if flag is kind]
            median, error = median_and_error(values)
            each.append(median / step)
            total += len(values) * median
            variance += (len(values) * error) ** 2
        whole = step * len(plain)
        sums = sum(seconds[clock] for seconds in extra) / sum(seconds[clock] for seconds in plain)
        print(
            f"{clock:10}  {each[0]:+13.0%}  {each[1]:+15.2%}  {total / whole:+9.2%} ± "
            f"{math.sqrt(variance) / whole:.2%}  {sums:+14.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_argument(parser)
    parser.add_argument("--policy", choices=("observe", "auto"), default="observe")
    parser.add_argument("--preset", default="dlrm-tiny")
    parser.add_argument("--table-rows", type=int, default=262_144)
    parser.add_argument("--table", help="how the table is kept: lazy or dense; by default as the job would")
    parser.add_argument("--batch-rows", type=int, default=256)
    parser.add_argument("--interval", type=int, default=1000)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--intervals", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with ExitStack() as stack:
        data = data_folder(arguments.data, stack)
        jobs = [Job(data, arguments, stack) for _ in range(2)]
        plain, extra, measured = [], [], []
        for step in range(arguments.interval * arguments.intervals):
            role = step // arguments.interval % 2 if arguments.policy == "observe" else 0
            rate = jobs[role].rate
            # who goes first alternates too, so that neither always finds the other's leavings in the caches
            order = (0, 1) if step % 2 else (1, 0)
            done = {job: jobs[job].run(measuring=job == role, rate=rate) for job in order}
            first, second = done[role], done[1 - role]
            plain.append(second.seconds)
            extra.append({clock: first.seconds[clock] - second.seconds[clock] for clock in CLOCKS})
            measured.append(first.measured)
    print(
        f"{arguments.preset}, {arguments.batch_rows} rows a batch, {arguments.threads} threads, "
        f"table {arguments.table or 'as it is'}, "
        f"{sum(measured)} of {len(measured)} steps measured; {arguments.policy} / none - 1 over them"
    )
    report(plain, extra, measured)


if __name__ == "__main__":
    main()
