"""How much the biased α* says too much on real rows, and whose fault it is: the slope's or the curvature's.

DLRM-tiny, warm-up and cosine by NAdamW, every step measured three ways: unbiased, biased and hybrid (slope from B1,
curvature from B2). Then unbiased − biased = (hybrid − biased) + (unbiased − hybrid): the first bracket is what the
slope of the trained batch does, the second what its curvature does.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.device import DataConfig, open_feed
from pipeline.shards import Manifest
from stepsize import BCEWithLogits, Estimate, StepSizeNumbers, StepSizeWorker, set_learning_rate
from tests.bench.rows import add_data_argument, data_folder
from trainer.learner import ModelConfig, OptimizerConfig, ScheduleConfig, build_model, build_optimizer, scheduled_rate

THREE = ("unbiased", "biased", "hybrid")


def observe(data: str, *, batch_rows: int, steps: int, peak: float, seed: int) -> list[Estimate]:
    """The estimates of a run's steps; the first is left out, its rate is nearly zero."""
    config = ModelConfig(preset="dlrm-tiny")
    model = build_model(config, dense_features=13, sparse_features=26, seed=seed)
    optimizer = build_optimizer(OptimizerConfig(lr=peak), model)
    worker = StepSizeWorker(model, optimizer, BCEWithLogits(), estimators=THREE)
    rows = config.resolved().table_rows
    assert rows is not None
    schedule = ScheduleConfig()
    data_config = DataConfig(path=data, batch_rows=batch_rows, seed=seed)
    feed = open_feed(data_config, Manifest.load(data), table_rows=rows, device=torch.device("cpu"))
    with feed:
        for step, pair in enumerate(itertools.islice(feed, steps)):
            set_learning_rate(optimizer, scheduled_rate(schedule, step=step, total_steps=steps, peak=peak))
            optimizer.zero_grad(set_to_none=True)
            b1, b2 = ((batch.dense, batch.ids) for batch in (pair.b1, pair.b2))
            binary_cross_entropy_with_logits(model(*b2), pair.b2.label).backward()
            if not pair.fresh:
                optimizer.step()
                continue
            with worker.around_step(b1, pair.b1.label, train_inputs=b2, train_targets=pair.b2.label, step=step):
                optimizer.step()
    return worker.poll()[1:]


def of(estimate: Estimate, name: str) -> StepSizeNumbers:
    found = estimate if name == "unbiased" else getattr(estimate, name)
    assert isinstance(found, StepSizeNumbers)
    return found


def pooled(estimates: Sequence[Estimate], slope: str, curvature: str) -> float:
    """−Σ slope/η / Σ curvature/η², from the estimator named for each."""
    top = sum((of(e, slope).slope or 0.0) / e.learning_rate for e in estimates)
    return -top / sum((of(e, curvature).curvature or 0.0) / e.learning_rate**2 for e in estimates)


def report(estimates: Sequence[Estimate]) -> None:
    """Print the table of the three estimators and the two brackets."""
    known = [e for e in estimates if all(of(e, name).relative is not None for name in THREE)]
    relative = {name: [of(e, name).relative or 0.0 for e in known] for name in THREE}
    print(f"{len(known)} of {len(estimates)} steps gave all three\n")
    print(f"{'α_rel':22} {'mean':>9} {'median':>9} {'sd':>9} {'negative':>9}  {'median α_abs':>12} {'pooled':>9}")
    for name, values in relative.items():
        negative = sum(value <= 0 for value in values) / len(values)
        spread = f"{statistics.fmean(values):9.2f} {statistics.median(values):9.2f} {statistics.stdev(values):9.2f}"
        of_b1 = "biased" if name == "biased" else "unbiased"
        rate = pooled(known, of_b1, "unbiased" if name == "unbiased" else "biased")
        middle = statistics.median(of(e, name).absolute or 0.0 for e in known)
        print(f"{name:22} {spread} {negative:9.1%}  {middle:12.2e} {rate:9.2e}")
    for label, left, right in (("slope's share", "hybrid", "biased"), ("curvature's share", "unbiased", "hybrid")):
        gaps = [a - b for a, b in zip(relative[left], relative[right], strict=True)]
        print(f"{label:22} {statistics.fmean(gaps):9.2f} {statistics.median(gaps):9.2f} {statistics.stdev(gaps):9.2f}")
    for label, number in (("slopes", "slope"), ("curvatures", "curvature")):
        pairs = [(getattr(e, number), getattr(e.biased, number)) for e in known]
        ratio = statistics.median(biased / unbiased for unbiased, biased in pairs)
        correlation = statistics.correlation(*zip(*pairs, strict=True))
        print(f"{label}: biased / unbiased {ratio:.2f} (median), correlation {correlation:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_argument(parser)
    parser.add_argument("--batch-rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        estimates = observe(
            str(data_folder(arguments.data, stack)),
            batch_rows=arguments.batch_rows,
            steps=arguments.steps,
            peak=arguments.lr,
            seed=arguments.seed,
        )
    report(estimates)


if __name__ == "__main__":
    main()
