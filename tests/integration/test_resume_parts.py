"""The parts of a run that other packages own, through the resume harness: the policies and the feed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from pipeline.device import DataConfig, open_feed
from pipeline.shards import Manifest
from stepsize.estimate import Estimate, Outcome
from stepsize.policies import StepSizeConfig, make_policy
from stepsize.policies.choice import PolicyName
from tests.resume import assert_resumes


class FedPolicy:
    """A policy that sees made-up estimates: noisy, some ascending, some without a number."""

    def __init__(self, name: PolicyName) -> None:
        config = StepSizeConfig(policy=name, interval=5, count=3, start=4)
        self.policy = make_policy(config, initial_rate=1e-3, total_steps=200)
        self.step = 0

    def advance(self) -> Any:
        chance = random.Random(self.step)
        rate = self.policy.learning_rate(self.step, 1e-3)
        said = None
        if self.policy.wants(self.step):
            said = self.policy.observe(self._estimate(chance, rate))
        self.step += 1
        return rate, said

    def _estimate(self, chance: random.Random, rate: float) -> Estimate:
        absolute = chance.gauss(4e-3, 4e-3)
        outcome = chance.choice([Outcome.OK if absolute > 0 else Outcome.ASCENT] * 4 + [Outcome.FLAT])
        number = outcome is not Outcome.FLAT
        curvature = 0.02 * (rate / 1e-3) ** 2
        return Estimate(
            step=self.step,
            age=0,
            outcome=outcome,
            learning_rate=rate,
            rows=256,
            slope=-curvature * absolute / rate if number else None,
            curvature=curvature if number else None,
            relative=absolute / rate if number else None,
            absolute=absolute if number else None,
            standard_error=0.3 if number else None,
            slope_variance=1e-6,
            curvature_variance=1e-6,
            covariance=0.0,
        )

    def state(self) -> Any:
        return {"step": self.step, "policy": self.policy.state_dict()}

    def restore(self, state: Any) -> None:
        self.step = state["step"]
        self.policy.load_state_dict(state["policy"])


@pytest.mark.parametrize("cut", [3, 40])
@pytest.mark.parametrize("name", get_args(PolicyName))
def test_every_policy_resumes_exactly(name: PolicyName, cut: int) -> None:
    assert_resumes(lambda: FedPolicy(name), steps=80, cut=cut)


class ReadFeed:
    """A feed whose pairs are looked at, bit for bit."""

    def __init__(self, config: DataConfig, stack: ExitStack) -> None:
        manifest = Manifest.load(config.path)
        self.feed = stack.enter_context(open_feed(config, manifest, table_rows=1000, device=torch.device("cpu")))

    def advance(self) -> Any:
        pair = next(self.feed)
        # copies: a slot of the feed may be filled again
        batches = [tensor.clone() for tensor in (*pair.b1, *pair.b2)]
        return batches, pair.fresh, pair.epoch, pair.start, pair.rows

    def state(self) -> Any:
        return self.feed.state_dict()

    def restore(self, state: Any) -> None:
        self.feed.load_state_dict(state)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("pairing", ["sliding", "disjoint"])
@pytest.mark.parametrize("cut", [1, 5])
def test_the_feed_resumes_exactly(small_data: Path, stack: ExitStack, pairing: Any, cut: int) -> None:
    # 9,600 training rows: the cut lies within an epoch, the end beyond one
    config = DataConfig(path=str(small_data), batch_rows=1500, pairing=pairing, seed=3)
    assert_resumes(lambda: ReadFeed(config, stack), steps=12, cut=cut)
