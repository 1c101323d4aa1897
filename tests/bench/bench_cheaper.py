"""How far the cheaper ways to α* lie from the JVP in full precision, against the estimate's own standard error.

The secant and the JVP in bfloat16, on the same steps of DLRM-tiny trained by NAdamW at a constant rate on real rows,
B1 the next batch. The last columns are what a user would act on: the pooled rate −Σ slope / Σ curvature over the run,
per unit of learning rate.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from contextlib import ExitStack
from functools import partial

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.device import DataConfig, open_feed
from pipeline.shards import Manifest
from stepsize import BCEWithLogits, Estimate, StepSizeWorker
from tests.bench.rows import add_data_argument, data_folder
from trainer.learner import ModelConfig, OptimizerConfig, build_model, build_optimizer

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
CHEAPER = {
    "secant": {"method": "secant"},
    "bfloat16": {"forward_context": partial(torch.autocast, "cpu", torch.bfloat16)},
}


def estimates_at(rate: float, data: str, *, batch_rows: int, steps: int) -> dict[str, list[Estimate]]:
    """Every way's estimates of the same steps, the JVP's as "jvp"."""
    config = ModelConfig(preset="dlrm-tiny")
    model = build_model(config, dense_features=13, sparse_features=26, seed=0)
    optimizer = build_optimizer(OptimizerConfig(lr=rate), model)
    workers = {
        name: StepSizeWorker(model, optimizer, BCEWithLogits(), **options)
        for name, options in {"jvp": {}, **CHEAPER}.items()
    }
    rows = config.resolved().table_rows
    assert rows is not None
    data_config = DataConfig(path=data, batch_rows=batch_rows)
    with open_feed(data_config, Manifest.load(data), table_rows=rows, device=torch.device("cpu")) as feed:
        for step, pair in enumerate(itertools.islice(feed, steps)):
            optimizer.zero_grad(set_to_none=True)
            binary_cross_entropy_with_logits(model(pair.b2.dense, pair.b2.ids), pair.b2.label).backward()
            if not pair.fresh:
                continue
            for worker in workers.values():
                worker.before_step((pair.b1.dense, pair.b1.ids), pair.b1.label, step=step)
            optimizer.step()
            for worker in workers.values():
                worker.after_step()
    return {name: worker.poll() for name, worker in workers.items()}


def pooled_rate(estimates: list[Estimate]) -> float:
    """−Σ slope/η / Σ curvature/η² over the steps that have both."""
    known = [(e.slope, e.curvature, e.learning_rate) for e in estimates if e.relative is not None]
    slope = sum(s / rate for s, _, rate in known if s is not None)
    return -slope / sum(c / rate**2 for _, c, rate in known if c is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_argument(parser)
    parser.add_argument("--batch-rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        compare(str(data_folder(arguments.data, stack)), batch_rows=arguments.batch_rows, steps=arguments.steps)


def compare(data: str, *, batch_rows: int, steps: int) -> None:
    """Print one line a rate and way."""
    print("   rate  way         ok  flat (jvp, it)  |Δα|/α median  |Δα|/se median       90 %  pooled jvp   pooled it")
    for rate in RATES:
        found = estimates_at(rate, data, batch_rows=batch_rows, steps=steps)
        for name in CHEAPER:
            both = found["jvp"], found[name]
            pairs = [
                (abs(j.relative - c.relative), abs(j.relative), j.standard_error)
                for j, c in zip(*both, strict=True)
                if j.relative is not None and c.relative is not None and j.standard_error is not None
            ]
            flat = [sum(estimate.relative is None for estimate in each) for each in both]
            print(f"{rate:7.0e}  {name:8}  {len(pairs):4}  {flat[0]:7} {flat[1]:6}", end="")
            if pairs:
                relative = statistics.median(gap / size for gap, size, _ in pairs)
                noise = sorted(gap / error for gap, _, error in pairs)
                rates = [f"{pooled_rate(each):10.3e}" for each in both]
                print(
                    f"  {relative:13.2e}  {statistics.median(noise):14.2e}  {noise[int(0.9 * len(noise))]:9.2e}"
                    f"  {rates[0]}  {rates[1]}",
                    end="",
                )
            print()


if __name__ == "__main__":
    main()
