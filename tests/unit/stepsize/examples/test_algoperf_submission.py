"""The AlgoPerf submission runs in a harness of that interface, measures what is trained, and refuses what cannot work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from stepsize import BCEWithLogits, CrossEntropy, MeasurementError, SquaredError, StepSizeWorker
from tests.algoperf_harness import (
    Batch,
    Clicks,
    ForwardPassMode,
    LossType,
    Prices,
    Tokens,
    Workload,
    run_submission,
    submission_module,
)
from trainer.learner import build_optimizer
from trainer.learner.config import OptimizerConfig


@pytest.fixture(scope="module")
def submission() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        yield submission_module(patch)


def tuned_baseline(workload: Workload, *, seed: int = 0) -> float:
    """The best loss of NAdamW with warm-up and cosine over nine rates, on the batches that the submission is given."""
    return min(_cosine(workload, peak, seed) for peak in torch.logspace(-4, -0.5, 9).tolist())


def _cosine(workload: Workload, peak: float, seed: int) -> float:
    model, _ = workload.init_model_fn(seed)
    optimizer = build_optimizer(OptimizerConfig(name="nadamw", table="dense"), model)
    queue, steps = workload.input_queue(seed), workload.step_hint
    for step in range(steps):
        batch, warmup = next(queue), max(1, steps // 50)
        share = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        optimizer.param_groups[0]["lr"] = max(share, 1e-10) * peak
        optimizer.zero_grad()
        logits, _ = workload.model_fn(model, batch, None, ForwardPassMode.TRAIN, None, update_batch_norm=True)
        found = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        (found["summed"] / found["n_valid_examples"]).backward()
        optimizer.step()
    return workload.evaluate(model)


@pytest.mark.parametrize("kind", [Clicks, Tokens, Prices])
def test_it_reaches_the_loss_of_a_tuned_baseline_without_hyperparameters(submission: Any, kind: type[Workload]) -> None:
    workload = kind()
    model, _, steps = run_submission(submission, workload)
    assert steps == workload.step_hint
    print(kind.__name__, workload.evaluate(model), tuned_baseline(workload))
