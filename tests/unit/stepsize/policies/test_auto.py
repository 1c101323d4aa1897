"""`auto`: what it finds, what each outcome does to it, and what it says."""

from __future__ import annotations

import itertools
import json
import statistics
from dataclasses import replace
from typing import Any

import pytest

from stepsize.estimate import Estimate, Outcome
from stepsize.policies import NO_HORIZON, StepSizeConfig, make_policy
from stepsize.policies.auto import SINGLE_TARGET, Auto
from stepsize.policies.horizon import FIRST_SERIES, target_of
from tests.estimates import estimate

NO_WARMUP: dict[str, Any] = {"warmup": 0}


class Fed:
    """An `auto` that is told of α_1 and α_K as made up here; without noise unless told so."""

    def __init__(self, policy: Auto | None = None, *, rate: float = 1e-2, delay: int = 0) -> None:
        self.policy = policy or Auto(guess=1e-3, warmup=0)
        self.rate, self.delay = rate, delay
        self.rates: list[float] = []
        self.said: list[str] = []
        self.plans: list[Any] = []
        self._due: list[tuple[int, Estimate]] = []

    def advance(self, steps: range, *, alpha: float | None = None, error: float = 0.05, **options: Any) -> Fed:
        """`alpha` is what every horizon is measured as; single steps suggest the rate."""
        for step in steps:
            rate = self.policy.learning_rate(step, 0.5)
            self.rates.append(rate)
            if self.policy.wants(step):
                self._due.append((step + self.delay, estimate(step, self.rate, error=1e-3 * self.rate, rate=rate)))
            plan = self.policy.horizon(step + 1)
            self.plans.append(plan)
            if plan.since is not None and alpha is not None:
                found = estimate(step, alpha, error=error, rate=1.0, **options)
                self._due.append((step + self.delay, replace(found, horizon=step + 1 - plan.since)))
            while self._due and self._due[0][0] <= step:
                said = self.policy.observe(replace(self._due.pop(0)[1], age=self.delay))
                self.said += [said] if said else []
        return self


def test_it_leaves_the_schedule_its_steps_before_start() -> None:
    policy = Auto(guess=1e-3, start=4)
    assert [policy.learning_rate(step, 0.3) for step in range(4)] == [0.3] * 4
    assert not any(policy.wants(step) for step in range(4))
    assert [policy.horizon(done) for done in range(1, 5)] == [NO_HORIZON] * 4
    assert policy.observe(estimate(3, 1e-2)) is None
    assert policy.learning_rate(4, 0.3) == 1e-6


@pytest.mark.parametrize("guess", [1e-7, 1e-6, 1e-2, 1.0])
def test_it_begins_at_a_share_of_the_rate_that_the_trial_steps_find(guess: float) -> None:
    fed = Fed(Auto(guess=guess, warmup=0)).advance(range(2))
    assert fed.rates == [min(guess, 1e-6), pytest.approx(3e-3)]
    assert "3.00e-3" in fed.said[0]
    assert "0.3 of the 1.00e-2" in fed.said[0]


def test_a_rate_far_below_the_trial_steps_is_begun_at_and_what_these_did_is_said() -> None:
    """Inputs in thousands: SGD wants rates of 1e-10, and a bound above what was found would make it diverge."""
    fed = Fed(Auto(guess=1e-3, warmup=0), rate=1e-10).advance(range(2))
    assert fed.rates[1] == pytest.approx(3e-11)
    assert "the trial step was 1e+04 times too long" in fed.said[0]
    assert "a first guess of 1.00e-11" in fed.said[0]
    assert "too long" not in Fed(rate=1e-3).advance(range(2)).said[0]


def test_on_target_the_rate_stays() -> None:
    fed = Fed().advance(range(400), alpha=0.58)
    assert fed.rates[399] == pytest.approx(fed.rates[60], rel=0.15)


@pytest.mark.parametrize(("alpha", "grows"), [(1.2, True), (0.1, False), (-0.5, False)])
def test_above_its_target_the_rate_rises_and_below_it_falls(alpha: float, grows: bool) -> None:
    fed = Fed().advance(range(400), alpha=alpha)
    before = fed.rates[FIRST_SERIES]
    assert (fed.rates[399] > 2 * before) if grows else (fed.rates[399] < 0.5 * before)
    factors = [after / before for before, after in zip(fed.rates[40:], fed.rates[41:], strict=False)]
    assert max(factors) <= 1.5 + 1e-9
    assert min(factors) >= 0.5 - 1e-9


def test_single_steps_are_held_short_of_what_lands_at_the_minimum() -> None:
    """`Fed`'s best rate of a single step is 1e-2."""
    assert Fed(Auto(guess=1e-2, warmup=0)).advance(range(24)).rates[23] == pytest.approx(1e-2 / SINGLE_TARGET, rel=0.05)


def test_a_rate_rises_to_twice_that_of_the_steps_that_speak_for_it_at_most() -> None:
    """Early series see the same steps again and again, and momentum shows what a rate does only later."""
    fed = Fed(Auto(guess=1e-2, warmup=0)).advance(range(60), alpha=3.0)
    capped = 0
    for step, (before, after) in enumerate(itertools.pairwise(fed.rates)):
        since = fed.plans[step].since
        if since is None:
            continue
        assert after >= before * (1 - 1e-9), "nothing says that it should fall"
        mean = statistics.fmean(fed.rates[since : step + 1])
        assert after <= max(2 * mean, 1.5 * before if step + 1 - since < 8 else before) * (1 + 1e-9)
        capped += after == pytest.approx(2 * mean)
    assert capped > 2


def test_single_steps_are_measured_until_the_first_series() -> None:
    policy = Fed().advance(range(1)).policy
    assert [policy.wants(step) for step in (1, FIRST_SERIES, FIRST_SERIES + 1)] == [True, True, False]


def test_single_steps_tell_the_rate_of_many_only_to_a_half() -> None:
    """However sure they were, the first series moves the rate by most of what it says."""
    fed = Fed(Auto(guess=1e-2, warmup=0)).advance(range(FIRST_SERIES + 3), alpha=1.05, error=0.01)
    assert fed.rates[-1] > 1.15 * fed.rates[FIRST_SERIES]


@pytest.mark.parametrize(("rows", "share"), [(1, 0.25), (8, 0.25), (64, 0.05)])
def test_a_warm_up_takes_a_quarter_of_what_is_left_at_most(rows: int, share: float) -> None:
    policy, step = Auto(guess=1e-2, warmup=20, cooldown=(400, 500)), 0
    while (state := policy.state_dict())["found"] is None:
        rate = policy.learning_rate(step, 0.5)
        policy.observe(replace(estimate(step, 1e-2, error=1e-5, rate=rate), rows=rows))
        step += 1
    assert state["warmup"] == pytest.approx(share * (400 - state["found"]), abs=1)


@pytest.mark.parametrize("delay", [0, 4, 8])
def test_series_under_way_do_not_lower_a_rate_twice(delay: int) -> None:
    """A rate that begins ten times too high, on a loss whose best rate is 1e-3."""
    policy, rates, due = Auto(guess=1e-2, warmup=0), [], []
    for step in range(120):
        rates.append(policy.learning_rate(step, 0.5))
        if policy.wants(step):
            due.append((step + delay, estimate(step, 1e-2 * SINGLE_TARGET, error=1e-5, rate=rates[-1])))
        since = policy.horizon(step + 1).since
        if since is not None:
            found = target_of(step + 1, since) * 1e-3 / statistics.fmean(rates[since:])
            late = estimate(step, found, error=0.05 * found, rate=1.0)
            due.append((step + delay, replace(late, horizon=step + 1 - since)))
        while due and due[0][0] <= step:
            policy.observe(replace(due.pop(0)[1], age=delay))
    assert min(rates[FIRST_SERIES:]) > 0.8e-3
    assert rates[-1] == pytest.approx(1e-3, rel=0.1)


def test_what_is_noise_moves_the_rate_little() -> None:
    certain, noise = (Fed().advance(range(400), alpha=1.2, error=error) for error in (0.05, 5.0))
    assert noise.rates[399] < 0.5 * certain.rates[399]


def test_noisy_measurements_are_made_in_longer_series() -> None:
    counts = [
        sum(plan.since is not None for plan in Fed().advance(range(2000), alpha=0.6, error=error).plans)
        for error in (0.02, 0.3, 1.0)
    ]
    assert counts[0] < counts[1] < counts[2] < 8.1 * counts[0]


@pytest.mark.parametrize("outcome", [Outcome.FLAT, Outcome.STALE, Outcome.DROPPED])
def test_a_series_without_numbers_leaves_the_rate_alone(outcome: Outcome) -> None:
    fed = Fed().advance(range(60), alpha=0.6).advance(range(60, 200), alpha=0.6, outcome=outcome)
    assert len(set(fed.rates[70:])) == 1
    assert any(outcome.value in said for said in fed.said), "and that they come again and again is said"


def test_a_series_that_is_not_finite_halves_the_rate() -> None:
    fed = Fed().advance(range(60), alpha=0.58)
    fed.advance(range(60, 75), alpha=0.58, outcome=Outcome.NONFINITE)
    assert fed.rates[-1] < 0.3 * fed.rates[59]
    assert any("no finite number" in said for said in fed.said)


def test_after_three_halvings_in_a_row_it_waits_for_numbers_whatever_comes_between() -> None:
    """A batch with a non-finite input is first a probe, then a step that is withheld, so dropped."""
    fed = Fed().advance(range(5))
    for step in range(5, 25, 2):
        for at, outcome in ((step, Outcome.NONFINITE), (step + 1, Outcome.DROPPED)):
            fed.policy.observe(estimate(at, outcome=outcome, rate=1e-3))
    assert fed.policy.learning_rate(25, 0.5) == pytest.approx(fed.rates[4] / 8, rel=0.1)


def test_one_cause_under_way_halves_once() -> None:
    fed = Fed().advance(range(5))
    before = fed.policy.learning_rate(10, 0.5)
    for step in range(5, 9):
        fed.policy.observe(estimate(step, outcome=Outcome.NONFINITE, age=4))
    assert fed.policy.learning_rate(10, 0.5) == pytest.approx(before / 2)


@pytest.mark.parametrize("rows", [1, 2, 8, 15])
def test_few_rows_a_probe_are_measured_in_series_and_move_the_rate(rows: int) -> None:
    """Each alone has no error bar; a series of them has one, from how they scatter."""
    policy = Auto(guess=1e-3, warmup=0)
    early = 0.0
    for step in range(200):
        rate = policy.learning_rate(step, 0.5)
        if policy.wants(step):
            noise = 1 + 0.1 * (-1) ** step
            policy.observe(replace(estimate(step, 1e-2 * noise, error=1e-4, rate=rate), rows=rows))
        plan = policy.horizon(step + 1)
        if plan.since is not None and step >= 60:
            found = estimate(step, 1.3 + 0.05 * (-1) ** step, error=0.0, rate=1.0)
            policy.observe(replace(found, rows=rows, horizon=step + 1 - plan.since))
        if step == 80:
            early = policy.learning_rate(step, 0.5)
    for step in range(200, 2000):
        plan = policy.horizon(step + 1)
        if plan.since is not None:
            found = estimate(step, 1.3 + 0.05 * (-1) ** step, error=0.0, rate=1.0)
            policy.observe(replace(found, rows=rows, horizon=step + 1 - plan.since))
    assert policy.learning_rate(2000, 0.5) > 2 * early


@pytest.mark.parametrize(
    ("rows", "singles", "series"), [(1, 64, 32), (2, 32, 16), (8, 24, 8), (15, 24, 8), (16, 24, 1)]
)
def test_what_few_rows_are_measured_in_is_a_block(rows: int, singles: int, series: int) -> None:
    """Of one row a probe it is 32, more than there are single steps otherwise."""
    policy, told = Auto(guess=1e-3, warmup=0), 0
    wanted, ends = [], []
    for step in range(3000):
        if policy.wants(step):
            wanted.append(step)
            noise = 1 + 0.1 * (-1) ** step
            found = estimate(step, 1e-2 * noise, error=1e-4, rate=policy.learning_rate(step, 0.5))
            policy.observe(replace(found, rows=rows))
        plan = policy.horizon(step + 1)
        told = 0 if plan.since is None else told + 1
        ends.append(told)
        if plan.since is not None:
            found = replace(estimate(step, 0.58, error=0.01, rate=1.0), rows=rows)
            policy.observe(replace(found, horizon=step + 1 - plan.since))
        if step == 100:
            policy.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    searched = 1 if rows >= 16 else max(8, 32 // rows)
    assert len(wanted) == searched + singles
    assert max(ends[2000:]) == series


def test_a_run_whose_budget_is_extended_measures_many_steps_again_and_no_single_one() -> None:
    fed = Fed(Auto(guess=1e-3, warmup=0, cooldown=(340, 400))).advance(range(400), alpha=0.58)
    state = fed.policy.state_dict()
    fed.policy = Auto(guess=1e-3, warmup=0, cooldown=(1800, 2000))
    fed.policy.load_state_dict(json.loads(json.dumps(state)))
    fed.advance(range(400, 1800), alpha=0.58)
    since = [done - plan.since for done, plan in enumerate(fed.plans, start=1) if plan.since is not None and done > 400]
    assert min(since) >= 25
    assert fed.rates[401] == pytest.approx(fed.rates[339], rel=0.05)
    assert fed.rates[1799] < 1.5 * fed.rates[339], "short horizons, whose target is nearer to a half, come first"


def fed_on_a_plateau(loss: float | None, cooldown: tuple[int, int] | None) -> tuple[list[float], list[str]]:
    """The rates of 400 steps that gain nothing, at a curvature of 2 a series, and what was said."""
    policy = Auto(guess=1e-3, warmup=0, cooldown=cooldown)
    rates, said = [], []
    for step in range(400):
        rates.append(policy.learning_rate(step, 0.5))
        if policy.wants(step):
            policy.observe(estimate(step, 1e-2, error=1e-3, rate=rates[-1]))
        plan = policy.horizon(step + 1)
        if plan.since is not None:
            found = replace(estimate(step, 0.5, error=0.05, rate=1.0), loss=loss, horizon=step + 1 - plan.since)
            said += filter(None, [policy.observe(found)])
    return rates, said


def test_steps_that_gain_nothing_and_cost_little_of_the_loss_get_longer() -> None:
    """To rattle costs a quarter of the curvature 2: much of a loss of 1, little of one of 1,000."""
    ends = 340, 400
    (falls, _), (rises, said) = fed_on_a_plateau(1.0, ends), fed_on_a_plateau(1000.0, ends)
    assert falls[339] < 0.8 * falls[FIRST_SERIES]
    assert rises[339] > 5 * rises[FIRST_SERIES]
    assert "α* of 8 steps is 0.50 ± 0.05, and should be 0.75, less 0.75 for what it may not show" in said[0]


@pytest.mark.parametrize(("loss", "cooldown"), [(1000.0, None), (-1000.0, (340, 400))])
def test_elsewhere_they_do_not(loss: float, cooldown: tuple[int, int] | None) -> None:
    """Without a cool-down the rattling would stay; and a loss below zero says nothing of what is left."""
    rates, _ = fed_on_a_plateau(loss, cooldown)
    assert rates[:340] == fed_on_a_plateau(None, (340, 400))[0][:340]
    assert rates[339] < 0.8 * rates[FIRST_SERIES]


@pytest.mark.parametrize(
    ("left", "first", "rises"), [(0.5, 1.0, True), (5e-4, 1.0, False), (5e-4, None, True), (-1.0, 1.0, True)]
)
def test_no_rate_rises_where_hardly_any_loss_is_left(left: float, first: float | None, rises: bool) -> None:
    """As on rows that are known by heart, where α_K says that longer steps would gain, of next to nothing."""
    policy, rates = Auto(guess=1e-3, warmup=0, cooldown=(340, 400)), []
    for step in range(340):
        rates.append(policy.learning_rate(step, 0.5))
        if policy.wants(step):
            policy.observe(replace(estimate(step, 1e-2, error=1e-4, rate=rates[-1]), loss=first))
        plan = policy.horizon(step + 1)
        if plan.since is not None:
            found = estimate(step, 1.5 if step < 200 else 0.1, error=0.05, rate=1.0)
            policy.observe(replace(found, loss=left, horizon=step + 1 - plan.since))
    assert (rates[199] > 2 * rates[FIRST_SERIES]) == rises
    assert rates[199] >= rates[FIRST_SERIES]
    assert rates[339] < 0.8 * rates[199], "it may fall"


def test_a_warm_up_longer_than_the_single_steps_is_not_undone() -> None:
    fed = Fed(Auto(guess=1e-3, warmup=400)).advance(range(1200), alpha=0.6)
    assert max(fed.rates) < 1.6 * 3e-3 * 1.1


def test_however_long_steps_raise_the_loss_the_rate_falls_by_a_bounded_factor() -> None:
    fed = Fed().advance(range(200), alpha=0.58).advance(range(200, 20_000), alpha=-0.4)
    assert fed.rates[-1] > fed.rates[199] / 2**11
    assert fed.rates[-1] < fed.rates[199] / 8


def test_what_a_series_says_that_lacks_a_measurement_is_not_lost() -> None:
    """Of 8 rows a probe each series has 8 measurements, of which every third is never made."""
    policy = Auto(guess=1e-3, warmup=0)
    for step in range(40):
        if policy.wants(step):
            rate = policy.learning_rate(step, 0.5) * (1 + 0.1 * (-1) ** step)
            policy.observe(replace(estimate(step, 1e-2, error=1e-4, rate=rate), rows=8))
        policy.horizon(step + 1)
    said: list[str] = []
    for step in range(40, 700):
        plan = policy.horizon(step + 1)
        if plan.since is not None and step % 3 != 0:
            found = estimate(step, 2.0 + 0.1 * (-1) ** step, error=0.5, rate=1.0)
            said += filter(None, [policy.observe(replace(found, rows=8, horizon=step + 1 - plan.since))])
    rates = [part for text in said for part in text.split("rate ")[1:]]
    ends = [part.split(" → ")[1].split(" ")[0] for part in rates]
    starts = [part.split(" → ")[0] for part in rates]
    assert len(ends) >= 4
    assert starts[1:] == ends[:-1], "each move begins where the one before it was said to end"


def test_a_series_that_lost_or_told_nothing_is_followed_by_another_soon() -> None:
    """Far into a run series are a quarter of it apart; three of them are too long to wait for what is wrong."""
    fed = Fed().advance(range(3000), alpha=0.58)
    begun = [step + 1 for step, plan in enumerate(fed.plans) if plan.since is not None]
    assert begun[-1] - begun[-2] > 0.2 * begun[-2]
    fed.advance(range(3000, 6000), alpha=-0.5)
    later = [step + 1 for step, plan in enumerate(fed.plans) if plan.since is not None and step >= 3000]
    assert max(after / before for before, after in itertools.pairwise(later)) < 1.08
    assert any("raise the loss" in text and f"step {later[2]}:" in text for text in fed.said)
    fed.advance(range(6000, 12_000), alpha=0.58)
    assert fed.plans[-1] == NO_HORIZON
    lately = [step + 1 for step, plan in enumerate(fed.plans) if plan.since is not None]
    assert lately[-1] - lately[-2] > 0.2 * lately[-2], "all is well again"


@pytest.mark.parametrize("rows", [4, 8])
def test_few_rows_are_still_told_from_in_a_run_that_an_earlier_version_began(rows: int) -> None:
    """Or one that has had more rows a probe until now."""
    fed = Fed().advance(range(600), alpha=0.58)
    state = fed.policy.state_dict()
    del state["block"]
    policy = Auto(guess=1e-3, warmup=0)
    policy.load_state_dict(state)
    before = policy.learning_rate(600, 0.5)
    for step in range(600, 5000):
        plan = policy.horizon(step + 1)
        if plan.since is not None:
            found = estimate(step, 2.0 + 0.1 * (-1) ** step, error=0.5, rate=1.0)
            policy.observe(replace(found, rows=rows, horizon=step + 1 - plan.since))
    assert policy.learning_rate(5000, 0.5) > 2 * before


def test_a_series_that_began_before_the_latest_single_steps_takes_no_drift_back() -> None:
    """Of one row a probe single steps go on beside the first series, and a block of them may end within one."""
    policy = Auto(guess=1e-3, warmup=0)
    for step in range(300):
        if policy.wants(step) and step != 40:
            found = estimate(step, 1e-2 * (1 + 0.1 * (-1) ** step), error=1e-4, rate=policy.learning_rate(step, 0.5))
            policy.observe(replace(found, rows=1))
        plan = policy.horizon(step + 1)
        if plan.since is not None:
            found = estimate(step, 0.6 + 0.05 * (-1) ** step, error=0.1, rate=1.0)
            policy.observe(replace(found, rows=1, horizon=step + 1 - plan.since))
        variance = policy.state_dict()["filter"]["variance"]
        assert variance is None or variance > 0


@pytest.mark.parametrize(("error", "least", "most"), [(0.05, 0.0009, 0.0011), (5.0, 0.0018, 0.002)])
def test_the_measurements_of_a_long_run_are_few(error: float, least: float, most: float) -> None:
    """At most 0.2 % of 85,328 steps, with the search and the single steps, however little 16 rows or more tell."""
    policy, measured = Auto(guess=1e-3, cooldown=(int(0.85 * 85_328), 85_328)), 0
    for step in range(85_328):
        rate = policy.learning_rate(step, 0.0)
        if policy.wants(step):
            policy.observe(estimate(step, 1e-2, error=1e-3, rate=rate))
            measured += 1
        plan = policy.horizon(step + 1)
        if plan.since is not None:
            found = estimate(step, 0.58, error=error, rate=1.0)
            policy.observe(replace(found, horizon=step + 1 - plan.since))
            measured += 1
    assert least * 85_328 <= measured <= most * 85_328


def test_a_measurement_that_never_came_holds_nothing_up() -> None:
    fed = Fed().advance(range(100), alpha=0.58)
    fed.advance(range(100, 140), alpha=None)
    before = fed.rates[-1]
    fed.advance(range(140, 400), alpha=1.5)
    assert fed.rates[-1] > 1.5 * before


def test_steps_that_raise_the_loss_again_and_again_are_said_once() -> None:
    fed = Fed().advance(range(200), alpha=0.58).advance(range(200, 600), alpha=-0.4)
    told = [said for said in fed.said if "raise the loss" in said]
    assert len(told) == 1
    assert "overfits" in told[0]
    assert not any("raise the loss" in said for said in Fed().advance(range(600), alpha=-0.1, error=0.2).said)


def test_it_cools_down_measures_nothing_then_and_lets_go_of_its_snapshots() -> None:
    fed = Fed(Auto(guess=1e-3, warmup=0, cooldown=(340, 400))).advance(range(400), alpha=0.58)
    assert fed.rates[370] == pytest.approx(fed.rates[339] / 2, rel=0.05)
    assert all(plan.since is None and not plan.keep for plan in fed.plans[340:])
    kept: set[int] = set()
    for done, plan in enumerate(fed.plans, start=1):
        assert set(plan.forget) <= kept
        kept = kept - set(plan.forget) | ({done} if plan.keep else set())
    assert not kept


@pytest.mark.parametrize("delay", [0, 4])
def test_it_goes_on_from_its_state_at_any_step(delay: int) -> None:
    whole = Fed(delay=delay).advance(range(300), alpha=0.8, error=0.4)
    for cut in (1, 5, 20, 34, 41, 60, 61, 62, 150, 222):
        fed = Fed(delay=delay).advance(range(cut), alpha=0.8, error=0.4)
        state = json.loads(json.dumps(fed.policy.state_dict()))
        fed.policy = Auto(guess=1e-3, warmup=0)
        fed.policy.load_state_dict(state)
        fed.advance(range(cut, 300), alpha=0.8, error=0.4)
        assert (fed.rates, fed.plans, fed.said) == (whole.rates, whole.plans, whole.said)


def test_it_goes_on_from_the_rate_of_a_run_that_followed_single_steps() -> None:
    single = make_policy(StepSizeConfig(policy="auto_single", warmup=0), initial_rate=1e-3, total_steps=None)
    for step in range(50):
        single.observe(estimate(step, 1e-2, error=1e-3, rate=single.learning_rate(step, 0.3)))
    policy = Auto(guess=1e-3, warmup=0)
    policy.load_state_dict(json.loads(json.dumps(single.state_dict())))
    assert policy.learning_rate(50, 0.3) == single.learning_rate(50, 0.3)
    fed = Fed(policy).advance(range(50, 400), alpha=1.2)
    assert fed.rates[-1] > 2 * fed.rates[0], "and measures many steps from there on"


def test_without_a_budget_the_horizon_is_bounded() -> None:
    policy = make_policy(StepSizeConfig(policy="auto"), initial_rate=1e-3, total_steps=None)
    bounded = make_policy(StepSizeConfig(policy="auto"), initial_rate=1e-3, total_steps=10**6)
    assert (policy._windows.endless, bounded._windows.endless) == (True, False)  # pyright: ignore[reportAttributeAccessIssue]
