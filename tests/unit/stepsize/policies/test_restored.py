"""Policies that follow estimates, cut midway and continued."""

from __future__ import annotations

import random
from typing import Any

import pytest

from stepsize.estimate import Outcome
from stepsize.policies.choice import StepSizeConfig, make_policy
from tests.estimates import SILENT, estimate
from tests.resume import assert_resumes


class Fed:
    """A policy fed from a seeded stream of every kind of outcome, for the resume harness."""

    def __init__(self, name: str) -> None:
        config = StepSizeConfig(policy=name, interval=20, count=6, start=2, warmup=5, cooldown=0.2)  # type: ignore[arg-type]
        self.policy = make_policy(config, initial_rate=1e-4, total_steps=40)
        self.step = 0

    def advance(self) -> Any:
        draw, step = random.Random(self.step), self.step
        rate, wanted, said = self.policy.learning_rate(step, 1e-4 * (step + 1)), self.policy.wants(step), None
        if wanted:
            early = step < 16
            outcome = Outcome.FLAT if step == 3 else None if early else draw.choice([None] * 6 + list(SILENT))
            absolute, error = (draw.gauss(0.0, 1e-3), 2e-3) if early else (draw.gauss(8e-3, 2e-3), 5e-4)
            said = self.policy.observe(estimate(step, absolute, error=error, rate=rate, outcome=outcome))
        self.step += 1
        return rate, wanted, said

    def state(self) -> Any:
        return {"step": self.step, "policy": self.policy.state_dict()}

    def restore(self, state: Any) -> None:
        self.step = state["step"]
        self.policy.load_state_dict(state["policy"])


@pytest.mark.parametrize("cut", [1, 2, 4, 9, 13, 15, 17, 19, 21, 24, 27, 33, 39])
@pytest.mark.parametrize("name", ["ema", "auto_single"])
def test_a_restored_policy_continues_exactly(name, cut):
    assert_resumes(lambda: Fed(name), steps=40, cut=cut)


def test_the_stream_of_the_resume_test_reaches_every_phase():
    fed = Fed("auto_single")
    said = [text for _, _, text in (fed.advance() for _ in range(40)) if text]
    assert any("too short" in text for text in said)
    assert any("no evidence" in text for text in said)
    assert any("reached over" in text for text in said)
    assert any("halved" in text or "followed" in text for text in said)
