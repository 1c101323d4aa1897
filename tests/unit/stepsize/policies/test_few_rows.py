"""Batches of a few rows: error bars from several steps, and training that neither stands still nor runs away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stepsize import StepSizeConfig, StepSizeWorker, make_policy, set_learning_rate
from stepsize.estimate import Estimate
from stepsize.policies.evidence import FewRows
from stepsize.pooling import rate_moments
from tests.estimates import estimate
from tests.resume import assert_resumes


def few(step: int, absolute: float, rows: int, *, rate: float = 1e-3, curvature: float = 2.0) -> Estimate:
    """An estimate of `rows` rows; one alone has no error bar."""
    made = replace(estimate(step, absolute, error=0.1, rate=rate, curvature=curvature), rows=rows)
    if rows > 1:
        return made
    return replace(made, slope_variance=None, curvature_variance=None, covariance=None, standard_error=None)


@pytest.mark.parametrize(("rows", "steps"), [(1, 32), (2, 16), (3, 11), (4, 8), (15, 8)])
def test_a_block_is_the_mean_of_its_steps_with_the_covariance_of_their_scatter(rows, steps):
    draw = np.random.default_rng(0)
    absolutes, curvatures = draw.normal(1e-2, 1e-2, steps), draw.lognormal(0.0, 0.5, steps)
    together, made = FewRows(), []
    for step, (absolute, curvature) in enumerate(zip(absolutes, curvatures, strict=True)):
        made.append(together.add(few(step, absolute, rows, rate=10.0 ** -(step % 4), curvature=curvature)))
    assert made[:-1] == [None] * (steps - 1)
    block, slopes = made[-1], -absolutes * curvatures
    spread = np.cov(slopes, curvatures) / steps
    assert block is not None
    assert block == pytest.approx((slopes.mean(), curvatures.mean(), spread[0, 0], spread[1, 1], spread[0, 1]))


def test_enough_rows_pass_as_they_are():
    one = few(0, 1e-2, 16)
    assert FewRows().add(one) == rate_moments(one)


class Added:
    """A block under way, for the resume harness."""

    def __init__(self) -> None:
        self.together, self.step = FewRows(), 0

    def advance(self):
        self.step += 1
        block = self.together.add(few(self.step, 1e-3 * self.step, 2))
        return None if block is None else list(block)

    def state(self):
        return {"step": self.step, "block": self.together.state_dict()}

    def restore(self, state) -> None:
        self.step = state["step"]
        self.together.load_state_dict(state["block"])


@pytest.mark.parametrize("cut", [1, 15, 16, 20])
def test_a_block_under_way_is_continued(cut):
    assert_resumes(Added, steps=40, cut=cut)


WEIGHTS = torch.tensor([[3.0], [-2.0], [0.5], [1.0]])


@pytest.mark.parametrize(("rows", "steps"), [(1, 32), (2, 16), (5, 8)])
def test_the_warm_up_is_as_many_times_longer_as_an_estimate_takes_steps(rows, steps):
    config = StepSizeConfig(policy="auto_single", interval=10_000, count=1, start=0, warmup=5, cooldown=0.0)
    policy, told = make_policy(config, initial_rate=1e-3, total_steps=10_000), 0
    while policy.learning_rate(told, 0.0) <= 1e-6:  # trial steps, none of them longer before there is evidence
        policy.observe(few(told, 1e-2 * (1 + 0.1 * (-1) ** told), rows, rate=policy.learning_rate(told, 0.0)))
        told += 1
    restored = make_policy(config, initial_rate=1e-3, total_steps=10_000)
    restored.load_state_dict(policy.state_dict())
    reached = policy.learning_rate(9_000, 0.0)
    assert told == steps
    for one in (policy, restored):
        ramp = [one.learning_rate(told + step, 0.0) / reached for step in range(5 * steps + 1)]
        assert ramp == pytest.approx([min(1.0, (step + 1) / (5 * steps)) for step in range(5 * steps + 1)])


@pytest.mark.parametrize(("rows", "warns"), [(2, True), (15, True), (16, False)])
def test_auto_says_that_a_few_rows_tell_little(rows, warns):
    policy = make_policy(StepSizeConfig(policy="auto_single"), initial_rate=1e-3, total_steps=10_000)
    told = [estimate(step, 1e-2 * (1 + 0.1 * (-1) ** step), error=1e-3, rate=1e-6) for step in range(20)]
    said = [policy.observe(replace(one, rows=rows)) for one in told]
    (found,) = [message for message in said if message and "reached over" in message]
    assert (f"{rows} probe rows tell little" in found) == warns


def logistic(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, 4, generator=generator)
    return x, (torch.rand(rows, 1, generator=generator) < torch.sigmoid(x @ WEIGHTS)).float()


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_auto_trains_on_the_smallest_batches_and_does_not_run_away(rows, make):
    """The least loss that any weights reach here is 0.32, an untrained model's 0.69 and more."""
    generator, loss = torch.Generator().manual_seed(0), nn.BCEWithLogitsLoss()
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = make(model.parameters(), lr=1e-3)
    worker = StepSizeWorker(model, optimizer, loss)
    policy = make_policy(StepSizeConfig(policy="auto_single"), initial_rate=1e-3, total_steps=700)
    b1 = logistic(rows, generator)
    for step in range(700):
        b2, b1 = b1, logistic(rows, generator)
        optimizer.zero_grad()
        loss(model(b2[0]), b2[1]).backward()
        set_learning_rate(optimizer, policy.learning_rate(step, 1e-3))
        measured = policy.wants(step) and worker.before_step(*b1, step=step)
        optimizer.step()
        if measured:
            worker.after_step()
        for found in worker.poll(step=step):
            policy.observe(found)
    x, y = logistic(4000, torch.Generator().manual_seed(1))
    assert loss(model(x), y).item() < 0.5
