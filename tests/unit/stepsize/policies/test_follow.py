"""Policies that follow estimates: what each outcome does in each phase, and where they end up on a known problem."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stepsize import StepSizeWorker, set_learning_rate
from stepsize.estimate import Estimate, Outcome
from stepsize.policies.choice import NoMeasurements, Policy, StepSizeConfig, make_policy
from stepsize.policies.follow import Auto, Bounds, Ema, Measuring
from tests.resume import assert_resumes

SILENT = (Outcome.FLAT, Outcome.NONFINITE, Outcome.STALE, Outcome.DROPPED)


def estimate(
    step: int,
    absolute: float = 0.0,
    *,
    error: float = 0.0,
    rate: float = 1e-3,
    outcome: Outcome | None = None,
    age: int = 0,
    curvature: float = 2.0,
) -> Estimate:
    """α_abs ± error of a step of length `rate`, all the noise in its slope; `curvature` is per rate squared."""
    outcome = outcome or (Outcome.OK if absolute > 0 else Outcome.ASCENT)
    number = outcome in (Outcome.OK, Outcome.ASCENT)
    return Estimate(
        step=step,
        age=age,
        outcome=outcome,
        learning_rate=rate,
        rows=256,
        slope=-absolute * curvature * rate if number else None,
        curvature=curvature * rate**2 if number else None,
        relative=absolute / rate if number else None,
        absolute=absolute if number else None,
        standard_error=error / rate if number else None,
        slope_variance=(error * curvature * rate) ** 2 if number else None,
        curvature_variance=0.0 if number else None,
        covariance=0.0 if number else None,
    )


def ema(*, start: int = 0, pooling: int = 10, clip: float = 1.25, low: float = 1e-8, high: float = 1.0) -> Ema:
    measuring = Measuring(interval=100, count=10, start=start)
    return Ema(measuring=measuring, bounds=Bounds(low=low, high=high), pooling=pooling, clip=clip)


def auto(
    guess: float = 1e-3,
    *,
    start: int = 0,
    low: float = 1e-8,
    high: float = 1.0,
    drift: float = 0.02,
    clip: float = 1.25,
    warmup: int = 0,
    cooldown: tuple[int, int] | None = None,
) -> Auto:
    return Auto(
        guess=guess,
        measuring=Measuring(interval=100, count=10, start=start),
        bounds=Bounds(low=low, high=high),
        drift=drift,
        clip=clip,
        warmup=warmup,
        cooldown=cooldown,
    )


def following(rate: float = 1e-2, **options: Any) -> Auto:
    """An `auto` that found `rate` from step 0's estimate, one tenth of it its error bar."""
    policy = auto(**options)
    assert policy.observe(estimate(0, rate, error=0.1 * rate, rate=1e-6)) is not None
    return policy


def test_measuring_takes_the_first_interval_whole_and_then_the_first_of_each():
    measuring = Measuring(interval=5, count=2, start=3)
    assert [step for step in range(20) if measuring.wants(step)] == [3, 4, 5, 6, 7, 8, 9, 13, 14, 18, 19]


@pytest.mark.parametrize(("rate", "expected"), [(1e-9, 1e-4), (3e-3, 3e-3), (7.0, 0.5)])
def test_bounds_give_the_nearest_rate_within(rate, expected):
    assert Bounds(low=1e-4, high=0.5).clamp(rate) == expected


def test_ema_leaves_the_schedule_its_steps_before_start():
    policy = ema(start=5)
    assert [policy.learning_rate(step, 0.1 * step) for step in range(5)] == [0.1 * step for step in range(5)]
    assert policy.observe(estimate(4, 1e-2)) is None
    assert policy.learning_rate(5, 0.5) == 0.5
    assert policy.learning_rate(6, 0.9) == 0.5, "from start on the schedule has no say"
    policy.observe(estimate(4, 1e-2, age=2))
    assert policy.learning_rate(7, 0.9) == 0.5, "nor has what was measured before it"


def test_ema_waits_for_a_schedule_that_begins_at_zero():
    policy = ema()
    assert policy.learning_rate(0, 0.0) == 0.0
    assert policy.observe(estimate(0, 1e-2)) is None
    assert policy.learning_rate(1, 1e-3) == 1e-3


def test_ema_is_the_ratio_of_exponential_averages_written_out():
    policy, draw, decay = ema(pooling=20, clip=1e9), random.Random(0), 1 - 1 / 20
    policy.learning_rate(0, 1e-3)
    slope = curvature = 0.0
    for step in range(60):
        absolute, bend = draw.uniform(0.5e-3, 3e-3), draw.uniform(1.0, 5.0)
        slope, curvature = decay * slope - absolute * bend, decay * curvature + bend
        policy.observe(estimate(step, absolute, curvature=bend, rate=draw.choice([1e-4, 1e-2])))
        assert policy.learning_rate(step + 1, 7.0) == pytest.approx(-slope / curvature, rel=1e-12)


@pytest.mark.parametrize(("absolute", "factor"), [(1.0, 1.25), (1e-7, 0.8)])
def test_ema_moves_by_the_clip_at_most(absolute, factor):
    policy = ema()
    policy.learning_rate(0, 1e-3)
    for step in range(4):
        policy.observe(estimate(step, absolute))
        assert policy.learning_rate(step + 1, 7.0) == pytest.approx(1e-3 * factor ** (step + 1))


def test_ema_keeps_its_rate_where_the_ratio_is_not_positive():
    policy = ema()
    policy.learning_rate(0, 1e-3)
    assert policy.observe(estimate(0, -5.0)) is None
    assert policy.learning_rate(1, 7.0) == 1e-3


@pytest.mark.parametrize("outcome", SILENT)
def test_outcomes_without_a_number_leave_ema_as_it_is(outcome):
    policy = ema()
    policy.learning_rate(0, 1e-3)
    policy.observe(estimate(0, 2e-3))
    before = policy.state_dict()
    assert policy.observe(estimate(1, outcome=outcome)) is None
    assert policy.state_dict() == before


def test_ema_stays_within_its_bounds():
    policy = ema(low=5e-4, high=2e-3)
    assert policy.learning_rate(0, 1.0) == 2e-3
    for step in range(20):
        policy.observe(estimate(step, 1.0))
    assert policy.learning_rate(20, 1.0) == 2e-3
    for step in range(20, 200):
        policy.observe(estimate(step, 1e-7))
    assert policy.learning_rate(200, 1.0) == 5e-4


def test_ema_says_so_once_the_rate_has_moved_by_half():
    policy = ema()
    policy.learning_rate(0, 1e-3)
    said = [policy.observe(estimate(step, 1.0, age=2)) for step in range(3)]
    assert said == [None, "step 4: rate 1.00e-3 → 1.56e-3 (ratio of averages 1.00e0, worth 2 estimates)", None]


def test_auto_leaves_the_schedule_its_steps_before_start():
    policy = auto(start=4)
    assert [policy.learning_rate(step, 0.3) for step in range(4)] == [0.3] * 4
    assert not any(policy.wants(step) for step in range(4))
    before = policy.state_dict()
    assert policy.observe(estimate(3, 1e-2)) is None
    assert policy.state_dict() == before
    assert policy.learning_rate(4, 0.3) == 1e-6
    assert policy.wants(4)


@pytest.mark.parametrize("guess", [1e-7, 1e-6, 1e-4, 1e-2, 1.0])
def test_auto_probes_with_harmless_steps_and_finds_the_rate_from_one_clear_estimate(guess):
    policy = auto(guess, warmup=20)
    probe = policy.learning_rate(0, 0.3)
    assert probe == min(guess, 1e-6)
    said = policy.observe(estimate(0, 5e-3, error=1e-3, rate=probe))
    source = "reached over 20 steps (α* of probing steps 5.00e-3 ± 1.00e-3)"
    assert said == f"step 1: rate {probe:.2e} → 5.00e-3, {source}".replace("e-0", "e-")
    assert policy.learning_rate(20, 0.3) == pytest.approx(5e-3)


def test_auto_sums_probes_until_two_standard_errors_are_clear():
    """1 ± 0.8 is clear of zero by two standard errors after three of them: 0.8 / √3 < 0.5."""
    policy = auto()
    assert [policy.observe(estimate(step, 1e-3, error=0.8e-3, rate=1e-6)) for step in range(2)] == [None, None]
    assert policy.learning_rate(2, 0.3) == 1e-6
    assert "1.00e-3 ± 4.62e-4" in (policy.observe(estimate(2, 1e-3, error=0.8e-3, rate=1e-6)) or "")


def test_auto_probes_ten_times_longer_after_ten_estimates_without_evidence_up_to_the_guess():
    policy = auto(3e-5)
    rates, said = [], []
    for step in range(40):
        rates.append(policy.learning_rate(step, 0.3))
        said.append(policy.observe(estimate(step, -1e-3 * (-1) ** step, error=1e-2, rate=rates[-1])))
    assert rates == pytest.approx([1e-6] * 10 + [1e-5] * 10 + [3e-5] * 20)
    assert [text for text in said if text] == [
        "step 10: rate 1.00e-6 → 1.00e-5 (no evidence of α* yet)",
        "step 20: rate 1.00e-5 → 3.00e-5 (no evidence of α* yet)",
    ]
    assert all(policy.wants(step) for step in (55, 155)), "probing goes on whatever the interval"


def test_auto_probes_ten_times_longer_at_once_where_flat_and_past_the_guess():
    policy = auto(2e-6, high=1e-4)
    rates = []
    for step in range(5):
        rates.append(policy.learning_rate(step, 0.3))
        said = policy.observe(estimate(step, outcome=Outcome.FLAT, rate=rates[-1]))
        assert (said is None) == (step > 1)
    assert rates == pytest.approx([1e-6, 1e-5, 1e-4, 1e-4, 1e-4])


@pytest.mark.parametrize("outcome", [Outcome.NONFINITE, Outcome.STALE, Outcome.DROPPED])
def test_other_outcomes_leave_probing_as_it_is(outcome):
    policy = auto()
    before = policy.state_dict()
    for step in range(30):
        assert policy.observe(estimate(step, outcome=outcome, rate=1e-6)) is None
    assert policy.state_dict() == before


def test_auto_takes_no_evidence_from_a_single_row():
    """One row has no error bar, so nothing says how far its α* can be trusted."""
    policy = auto()
    one_row = Estimate(**{**vars(estimate(0, 1e-2)), "slope_variance": None})
    assert policy.observe(one_row) is None
    assert policy.learning_rate(1, 0.3) == 1e-6


def test_auto_comes_up_over_its_warm_up():
    policy = following(1e-2, warmup=4)
    rates = [policy.learning_rate(step, 0.3) for step in range(1, 7)]
    assert rates == pytest.approx([0.25e-2, 0.5e-2, 0.75e-2, 1e-2, 1e-2, 1e-2])


def test_auto_starts_its_warm_up_where_a_late_estimate_finds_it():
    policy = auto(warmup=4)
    assert (policy.observe(estimate(0, 1e-2, error=1e-3, rate=1e-6, age=3)) or "").startswith("step 4:")
    assert [policy.learning_rate(step, 0.3) for step in (2, 4, 5)] == pytest.approx([0.25e-2, 0.25e-2, 0.5e-2])


def test_auto_goes_as_far_as_the_evidence_does():
    vague, clear = following(1e-2), following(1e-2)
    vague.observe(estimate(1, 1.2e-2, error=1e-1))
    clear.observe(estimate(1, 1.2e-2, error=1e-4))
    assert vague.learning_rate(2, 0.3) == pytest.approx(1e-2, rel=0.01)
    assert clear.learning_rate(2, 0.3) == pytest.approx(1.2e-2, rel=0.03)


@pytest.mark.parametrize(("absolute", "expected"), [(1.0, 1.25e-2), (-1.0, 0.8e-2)])
def test_auto_moves_by_the_clip_at_most_and_down_on_ascent(absolute, expected):
    policy = following(1e-2)
    policy.observe(estimate(1, absolute, error=1e-3))
    assert policy.learning_rate(2, 0.3) == pytest.approx(expected)


def test_auto_halves_its_rate_where_the_probe_rows_give_no_finite_number():
    policy = following(1e-2)
    said = policy.observe(estimate(1, outcome=Outcome.NONFINITE))
    assert said == "step 2: rate 1.00e-2 → 5.00e-3 (halved: the probe rows gave no finite number)"
    assert policy.learning_rate(2, 0.3) == pytest.approx(5e-3)


@pytest.mark.parametrize("outcome", [Outcome.FLAT, Outcome.STALE, Outcome.DROPPED])
def test_auto_ignores_other_outcomes_while_its_uncertainty_grows(outcome):
    policy, idle = following(1e-2), following(1e-2)
    assert policy.observe(estimate(1, outcome=outcome)) is None
    assert policy.state_dict() == idle.state_dict()
    soon, late = following(1e-2), following(1e-2)
    soon.observe(estimate(1, 1.1e-2, error=2e-3))
    late.observe(estimate(400, 1.1e-2, error=2e-3))
    assert late.learning_rate(401, 0.3) > soon.learning_rate(401, 0.3)


def test_auto_stays_within_its_bounds():
    policy = auto(1.0, low=1e-3, high=2e-2)
    assert policy.learning_rate(0, 0.3) == 1e-3, "probing steps too"
    policy.observe(estimate(0, 5.0, error=0.1, rate=1e-3))
    assert policy.learning_rate(1, 0.3) == pytest.approx(2e-2)
    for step in range(1, 50):
        policy.observe(estimate(step, -1.0, error=1e-3))
    assert policy.learning_rate(50, 0.3) == pytest.approx(1e-3)
    policy.observe(estimate(50, outcome=Outcome.NONFINITE))
    assert policy.learning_rate(51, 0.3) == pytest.approx(1e-3)


def test_auto_leaves_a_bound_as_soon_as_the_estimates_do():
    """The rate behind the bound is the bound itself, whatever pushed against it."""
    found = following(5.0, high=2e-2)
    pushed = following(1e-2, high=2e-2)
    for step in range(1, 50):
        pushed.observe(estimate(step, 5.0, error=1e-3))
    for policy in (found, pushed):
        policy.observe(estimate(50, -1.0, error=1e-3))
        assert policy.learning_rate(51, 0.3) == pytest.approx(0.8 * 2e-2)
    halved = following(1e-2, low=8e-3)
    for step in range(1, 10):
        halved.observe(estimate(step, outcome=Outcome.NONFINITE))
    halved.observe(estimate(10, 1.0, error=1e-3))
    assert halved.learning_rate(11, 0.3) == pytest.approx(1.25 * 8e-3)


def test_auto_says_so_once_the_rate_has_moved_by_half():
    policy = following(1e-2)
    said = [policy.observe(estimate(step, 1.0, error=1e-3)) for step in range(1, 5)]
    assert [bool(text) for text in said] == [False, True, False, True]
    assert (said[1] or "").startswith("step 3: rate 1.00e-2 → 1.56e-2 (α* followed to within ")


def test_auto_falls_to_zero_over_its_cool_down_and_neither_measures_nor_heeds_then():
    policy = following(1e-2, cooldown=(80, 100), start=0)
    assert policy.wants(79)
    before = policy.state_dict()
    for step in range(80, 100):
        assert not policy.wants(step)
        for late in (estimate(step, 1e-9, error=1e-10), estimate(step, outcome=Outcome.NONFINITE)):
            assert policy.observe(late) is None
    assert policy.state_dict() == before
    rates = [policy.learning_rate(step, 0.3) for step in (79, 80, 85, 99, 100, 120)]
    assert rates == pytest.approx([1e-2, 1e-2, 0.75e-2, 0.05e-2, 0.0, 0.0])


def test_a_cool_down_that_begins_while_probing_ends_the_probing():
    policy = auto(cooldown=(10, 20))
    assert policy.wants(9)
    assert not policy.wants(10)
    assert policy.observe(estimate(10, 1e-2, error=1e-4, rate=1e-6)) is None
    assert policy.learning_rate(15, 0.3) == pytest.approx(0.5e-6)


@pytest.mark.parametrize(
    ("share", "total", "expected"),
    [(0.2, 1000, (800, 1000)), (0.001, 10, (9, 10)), (None, 1000, (850, 1000)), (None, None, None), (0.0, 1000, None)],
)
def test_the_cool_down_is_a_share_of_the_budget(share, total, expected):
    policy = make_policy(StepSizeConfig(policy="auto", cooldown=share), initial_rate=1e-3, total_steps=total)
    assert isinstance(policy, Auto)
    assert policy.cooldown == expected


def test_a_cool_down_needs_a_budget_in_steps():
    with pytest.raises(ValueError, match=r"stepsize\.cooldown: 0\.2 .*set budget\.steps"):
        make_policy(StepSizeConfig(policy="auto", cooldown=0.2), initial_rate=1e-3, total_steps=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling": 1}, "stepsize.pooling: 1"),
        ({"drift": -0.1}, "stepsize.drift: -0.1"),
        ({"clip": 1.0}, "stepsize.clip: 1.0"),
        ({"clip": math.inf}, "stepsize.clip: inf"),
        ({"warmup": -1}, "stepsize.warmup: -1"),
        ({"cooldown": 1.0}, "stepsize.cooldown: 1.0"),
        ({"min_rate": 0.0}, "stepsize.min_rate: 0.0"),
        ({"min_rate": 1e-3, "max_rate": 1e-4}, "stepsize.max_rate: 0.0001"),
    ],
)
def test_config_errors_name_key_and_value_in_one_line(values, message):
    with pytest.raises(ValueError, match="stepsize") as caught:
        StepSizeConfig(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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
@pytest.mark.parametrize("name", ["ema", "auto"])
def test_a_restored_policy_continues_exactly(name, cut):
    assert_resumes(lambda: Fed(name), steps=40, cut=cut)


def test_the_stream_of_the_resume_test_reaches_every_phase():
    fed = Fed("auto")
    said = [text for _, _, text in (fed.advance() for _ in range(40)) if text]
    assert any("too short" in text for text in said)
    assert any("no evidence" in text for text in said)
    assert any("reached over" in text for text in said)
    assert any("halved" in text or "followed" in text for text in said)


class Tracking:
    """A quadratic whose optimum walks, so that the best constant rate of SGD is known.

    Loss ½‖θ − w_t‖² (curvature 1), N weights; each step w moves by q·ε and the gradient comes with noise σ·ε. With
    P the mean square of a coordinate of θ − w, P ← (1 − η)²P + η²σ² + q², least at η = P/(P + σ²): in balance
    P² = q²(P + σ²). That η is also the mean α_abs; the slope's variance is σ²‖d‖².
    """

    N, NOISE, WALK = 30, 1.0, 0.1

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.error = self.draw.standard_normal(self.N) * 3.0

    @classmethod
    def best_rate(cls) -> float:
        square = cls.WALK**2
        p = (square + math.sqrt(square**2 + 4 * square * cls.NOISE**2)) / 2
        return p / (p + cls.NOISE**2)

    def step(self, index: int, rate: float) -> tuple[float, Estimate]:
        """One SGD step at `rate`: the loss before it and its unbiased estimate."""
        g1, g2 = (self.error + self.NOISE * self.draw.standard_normal(self.N) for _ in range(2))
        d = -rate * g2
        slope, curvature = float(d @ g1), float(d @ d)
        loss = 0.5 * float(self.error @ self.error)
        self.error = self.error + d + self.WALK * self.draw.standard_normal(self.N)
        absolute, error = -slope / curvature * rate, self.NOISE * rate / math.sqrt(curvature)
        return loss, estimate(index, absolute, error=error, rate=rate, curvature=curvature / rate**2)


def track(policy: Policy, *, scheduled: float = 1.0, steps: int = 1500) -> tuple[float, float]:
    """(mean rate, mean loss) over the second half of a run."""
    problem, rates, losses = Tracking(seed=0), [], []
    for step in range(steps):
        rate = policy.learning_rate(step, scheduled)
        loss, found = problem.step(step, rate)
        if policy.wants(step):
            policy.observe(found)
        rates.append(rate)
        losses.append(loss)
    return float(np.mean(rates[steps // 2 :])), float(np.mean(losses[steps // 2 :]))


def loss_at(rate: float) -> float:
    """The mean loss at a constant rate."""
    return track(NoMeasurements(), scheduled=rate)[1]


@pytest.mark.parametrize("guess", [1e-6, 1e-4, 1e-2, 1.0])
def test_auto_lands_near_the_best_rate_from_every_guess(guess):
    best = Tracking.best_rate()
    least = loss_at(best)
    config = StepSizeConfig(policy="auto", interval=10, count=10)
    rate, loss = track(
        make_policy(config, initial_rate=guess, total_steps=None)
    )  # a moving target, nothing to settle on
    assert rate == pytest.approx(best, rel=0.2)
    assert loss < 1.05 * least
    assert min(loss_at(best / 4), loss_at(best * 4)) > 1.2 * least, "on this problem the rate matters"


@pytest.mark.parametrize("guess", [1e-4, 1e-2, 1.0])
def test_ema_lands_near_the_best_rate_too(guess):
    config = StepSizeConfig(policy="ema", interval=10, count=10)
    rate, _ = track(make_policy(config, initial_rate=guess, total_steps=1500), scheduled=guess)
    assert rate == pytest.approx(Tracking.best_rate(), rel=0.2)


def trained_from(guess: float, *, optimizer_rate: float) -> tuple[list[float], torch.Tensor]:
    """A loop of one's own under `auto`: the rate of each of 40 AdamW steps, and the weights they lead to."""
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)), nn.MSELoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=optimizer_rate)
    worker = StepSizeWorker(model, optimizer, loss)
    policy = make_policy(StepSizeConfig(policy="auto", interval=20, count=10), initial_rate=guess, total_steps=40)
    x, rates = torch.randn(41, 64, 5), []
    y = x.sum(2, keepdim=True).sin()
    for step in range(40):
        rates.append(policy.learning_rate(step, 0.0))
        set_learning_rate(optimizer, rates[-1])
        optimizer.zero_grad()
        loss(model(x[step]), y[step]).backward()
        if policy.wants(step):
            worker.before_step(x[step + 1], y[step + 1], step=step)
        optimizer.step()
        worker.after_step()
        for found in worker.poll(step=step):
            policy.observe(found)
    return rates, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_auto_in_a_loop_of_one_s_own_does_the_same_to_the_bit_from_every_guess_above_its_probing_steps():
    """The guess only bounds steps taken without evidence, and the first step of 1e-6 already gives it here."""
    rates, weights = trained_from(1e-6, optimizer_rate=1e-6)
    assert rates[0] == 1e-6
    assert max(rates) > 1e-3
    for guess in (1e-4, 1e-2, 1.0):
        others, end = trained_from(guess, optimizer_rate=guess)
        assert others == rates
        assert torch.equal(end, weights)
    assert trained_from(1e-7, optimizer_rate=1e-7)[0][0] == 1e-7, "a smaller guess is a smaller step"
