"""A policy around anyone's own step: the same as by hand, resumed bit for bit, nothing left behind by an error."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from stepsize import Horizon, RateController, StepSizeConfig, StepSizeWorker, make_policy, set_learning_rate
from stepsize.policies.horizon import FIRST_SERIES

STEPS = 120
LOSS = nn.BCEWithLogitsLoss()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(64, 6, generator=generator)
    weights = torch.tensor([[3.0], [-2.0], [0.5], [1.0], [0.0], [-1.0]])
    return x, (torch.rand(64, 1, generator=generator) < torch.sigmoid(x @ weights)).float()


class Run:
    """A model with dropout and BatchNorm, so that everything a measurement must leave alone is there."""

    def __init__(self, guess: float = 1e-2, **config: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=guess, momentum=0.5)
        settings = StepSizeConfig(**{"policy": "auto", "warmup": 5, **config})
        self.controller = RateController(self.model, self.optimizer, LOSS, settings, total_steps=STEPS)
        self.rates: list[float] = []
        self.estimates: list[Any] = []

    def backward(self, step: int) -> None:
        x, y = batch(step)
        self.optimizer.zero_grad()
        LOSS(self.model(x), y).backward()

    def advance(self, steps: range) -> Run:
        for step in steps:
            self.backward(step)
            with self.controller.around_step(*batch(step + 1), step=step):
                self.optimizer.step()
            self.rates.append(self.controller.rate)
            self.estimates += self.controller.estimates
        return self

    def weights(self) -> list[torch.Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]


@pytest.fixture(scope="module")
def whole() -> Run:
    return Run().advance(range(STEPS))


def test_it_does_what_its_parts_do_by_hand(whole: Run) -> None:
    run = Run()
    worker = StepSizeWorker(run.model, run.optimizer, LOSS, delay=None)
    horizon = Horizon(worker)
    config = StepSizeConfig(policy="auto", warmup=5)
    policy = make_policy(config, initial_rate=1e-2, total_steps=STEPS)
    rates = []
    for step in range(STEPS):
        run.backward(step)
        rates.append(policy.learning_rate(step, 1e-2))
        set_learning_rate(run.optimizer, rates[-1])
        if policy.wants(step):
            worker.before_step(*batch(step + 1), step=step)
        run.optimizer.step()
        worker.after_step()
        horizon.carry_out(policy.horizon(step + 1), *batch(step + 1), step=step + 1)
        for estimate in worker.poll(step=step):
            policy.observe(estimate)
    assert rates == whole.rates
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(run.weights(), whole.weights(), strict=True))


def test_every_kind_of_measurement_is_in_the_run(whole: Run) -> None:
    horizons = [estimate.horizon for estimate in whole.estimates]
    assert horizons.count(1) >= 1 + FIRST_SERIES, "the search and the single steps"
    assert max(horizons) >= 20
    assert whole.rates[-1] < 0.1 * max(whole.rates), "it cools down"
    assert whole.controller.horizon.steps == (), "and lets go of its snapshots"


@pytest.mark.parametrize(("cut", "delay"), [(1, 3), (20, None), (36, 3), (47, None), (71, 3), (104, None)])
def test_it_goes_on_from_its_state_bit_for_bit(cut: int, delay: int | None) -> None:
    first, second = Run(delay=delay).advance(range(cut)), Run(delay=delay)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.controller.load_state_dict(copy.deepcopy(first.controller.state_dict()))
    torch.manual_seed(1)
    generator = torch.get_rng_state()
    second.advance(range(cut, STEPS))
    torch.set_rng_state(generator)
    first.advance(range(cut, STEPS))
    assert first.rates == first.rates[:cut] + second.rates
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first.weights(), second.weights(), strict=True))


@pytest.mark.parametrize("guess", [1e-6, 1.0])
def test_the_first_guess_decides_about_the_trial_steps_alone(guess: float, whole: Run) -> None:
    assert Run(guess).advance(range(STEPS)).rates == whole.rates


def test_an_error_in_the_step_leaves_nothing_behind(whole: Run) -> None:
    run = Run().advance(range(40))
    run.backward(40)
    before = run.controller.policy.state_dict()
    with pytest.raises(RuntimeError, match="on purpose"), run.controller.around_step(*batch(41), step=40):
        raise RuntimeError("on purpose")
    assert run.controller.policy.state_dict() == before


def test_other_policies_work_as_well() -> None:
    run = Run(policy="ema", interval=10, count=10, start=0).advance(range(40))
    assert len(run.estimates) == 40
    assert len(set(run.rates)) > 5


def test_a_schedule_of_the_callers_rules_where_the_policy_leaves_it_to_one() -> None:
    run = Run(policy="observe", interval=5, count=1)
    for step in range(10):
        run.controller.scheduled = 1e-2 / (step + 1)
        run.advance(range(step, step + 1))
    assert run.rates == [1e-2 / (step + 1) for step in range(10)]
    assert [estimate.step for estimate in run.estimates] == [0, 5]


def test_a_run_beyond_its_budget_is_warned_of_once() -> None:
    """Its rate is 0: nothing more would be learned, and nothing would tell."""
    run = Run().advance(range(STEPS))
    with pytest.warns(UserWarning, match=f"step {STEPS} is beyond total_steps={STEPS}.*the rate is 0") as warned:
        run.advance(range(STEPS, STEPS + 3))
    assert len(warned) == 1
    assert run.rates[-3:] == [0.0] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Run(cooldown=0.0).advance(range(STEPS + 1)).rates[-1] > 0


def test_a_run_resumed_beyond_its_budget_is_warned_of(whole: Run) -> None:
    run = Run()
    run.controller.load_state_dict(whole.controller.state_dict())
    with pytest.warns(UserWarning, match=f"step {STEPS + 7} is beyond total_steps={STEPS}") as warned:
        run.advance(range(STEPS + 7, STEPS + 9))
    assert len(warned) == 1


def test_a_schedule_that_ends_with_0_is_no_cool_down_of_the_policy() -> None:
    run = Run(policy="observe", interval=1000, count=1)
    run.controller.scheduled = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.advance(range(STEPS, STEPS + 2)).rates == [0.0, 0.0]
