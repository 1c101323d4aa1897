"""One rate for several parameter groups, beside torch's own schedules."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from stepsize import StepSizeConfig, make_policy, set_learning_rate
from stepsize.policies.rates import Bounds


def optimizer_with(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates], lr=1.0)


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_groups_keep_their_share_also_through_zero():
    optimizer = optimizer_with(1e-3, 1e-4, 1e-3)
    for rate in (5e-2, 0.0, 2e-3):
        set_learning_rate(optimizer, rate)
        assert rates_of(optimizer) == pytest.approx([rate, 0.1 * rate, rate])


def test_groups_of_an_optimizer_without_a_rate_all_get_it():
    optimizer = optimizer_with(0.0, 0.0)
    set_learning_rate(optimizer, 3e-3)
    assert rates_of(optimizer) == [3e-3, 3e-3]


def test_a_rate_that_is_a_tensor_stays_that_tensor():
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=rate)
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25


@pytest.mark.parametrize(
    "make",
    [lambda o: CosineAnnealingLR(o, T_max=40), lambda o: LambdaLR(o, lambda step: min(1.0, (step + 1) / 10))],
    ids=["chainable", "closed form"],
)
@pytest.mark.parametrize("policy", ["observe", "median_hold"])
def test_a_torch_schedule_rules_as_if_alone_until_the_policy_takes_over(make, policy):
    alone, driven = optimizer_with(1e-2, 1e-3), optimizer_with(1e-2, 1e-3)
    schedule, expected = make(driven), make(alone)
    following = make_policy(
        StepSizeConfig(policy=policy, interval=20, count=5, start=15), initial_rate=1e-2, total_steps=40
    )
    for step in range(40):
        set_learning_rate(driven, following.learning_rate(step, schedule.get_last_lr()[0]))
        held = policy == "median_hold" and step >= 15
        if step == 15:
            at_start = rates_of(alone)
        assert rates_of(driven) == pytest.approx(at_start if held else rates_of(alone))
        for optimizer, each in ((driven, schedule), (alone, expected)):
            optimizer.step()
            each.step()


@pytest.mark.parametrize(("rate", "expected"), [(1e-9, 1e-4), (3e-3, 3e-3), (7.0, 0.5)])
def test_bounds_give_the_nearest_rate_within(rate, expected):
    assert Bounds(low=1e-4, high=0.5).clamp(rate) == expected
