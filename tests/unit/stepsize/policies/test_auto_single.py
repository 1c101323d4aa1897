"""What each outcome does to `auto_single` in each of its phases."""

from __future__ import annotations

import pytest

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.auto_single import AutoSingle
from stepsize.policies.choice import StepSizeConfig, make_policy
from stepsize.policies.rates import NO_COOL_DOWN, CoolDown
from tests.estimates import auto, estimate, following


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
def test_auto_tries_harmless_steps_and_finds_the_rate_from_one_clear_estimate(guess):
    policy = auto(guess, warmup=20)
    trial = policy.learning_rate(0, 0.3)
    assert trial == min(guess, 1e-6)
    said = policy.observe(estimate(0, 5e-3, error=1e-3, rate=trial))
    source = "reached over 20 steps (trial steps suggest 5.00e-3 ± 1.00e-3)"
    assert said == f"step 1: rate {trial:.2e} → 5.00e-3, {source}".replace("e-0", "e-")
    assert policy.learning_rate(20, 0.3) == pytest.approx(5e-3)


def test_auto_sums_trials_until_two_standard_errors_are_clear():
    """1 ± 0.8 is clear of zero by two standard errors after three of them: 0.8 / √3 < 0.5."""
    policy = auto()
    assert [policy.observe(estimate(step, 1e-3, error=0.8e-3, rate=1e-6)) for step in range(2)] == [None, None]
    assert policy.learning_rate(2, 0.3) == 1e-6
    assert "1.00e-3 ± 4.62e-4" in (policy.observe(estimate(2, 1e-3, error=0.8e-3, rate=1e-6)) or "")


def test_auto_tries_ten_times_longer_after_ten_estimates_without_evidence_up_to_the_guess():
    policy = auto(3e-5)
    rates, said = [], []
    for step in range(40):
        rates.append(policy.learning_rate(step, 0.3))
        said.append(policy.observe(estimate(step, -1e-3 * (-1) ** step, error=1e-2, rate=rates[-1])))
    assert rates == pytest.approx([1e-6] * 10 + [1e-5] * 10 + [3e-5] * 20)
    assert [text for text in said if text] == [
        "step 10: rate 1.00e-6 → 1.00e-5 (no evidence of a rate yet)",
        "step 20: rate 1.00e-5 → 3.00e-5 (no evidence of a rate yet)",
    ]
    assert all(policy.wants(step) for step in (55, 155)), "the search goes on whatever the interval"


def test_auto_tries_ten_times_longer_at_once_where_flat_up_to_the_guess():
    policy = auto(2e-5)
    rates = []
    for step in range(5):
        rates.append(policy.learning_rate(step, 0.3))
        said = policy.observe(estimate(step, outcome=Outcome.FLAT, rate=rates[-1]))
        assert (said is None) == (step > 1)
    assert rates == pytest.approx([1e-6, 1e-5, 2e-5, 2e-5, 2e-5])


def test_a_guess_below_the_first_trial_is_passed_where_flat():
    """A step of 1e-6 harms nothing, and float32 may not resolve a shorter one."""
    policy = auto(1e-8)
    for step in range(30):
        policy.observe(estimate(step, outcome=Outcome.FLAT, rate=policy.learning_rate(step, 0.3)))
    assert policy.learning_rate(30, 0.3) == pytest.approx(1e-6)


@pytest.mark.parametrize("outcome", [Outcome.NONFINITE, Outcome.STALE, Outcome.DROPPED])
def test_auto_comes_up_to_the_guess_where_nothing_is_measured(outcome):
    policy = auto(3e-5)
    rates = []
    for step in range(40):
        rates.append(policy.learning_rate(step, 0.3))
        policy.observe(estimate(step, outcome=outcome, rate=rates[-1]))
    assert rates == pytest.approx([1e-6] * 10 + [1e-5] * 10 + [3e-5] * 20)


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
    assert policy.learning_rate(2, 0.3) == idle.learning_rate(2, 0.3)
    soon, late = following(1e-2), following(1e-2)
    soon.observe(estimate(1, 1.1e-2, error=2e-3))
    late.observe(estimate(400, 1.1e-2, error=2e-3))
    assert late.learning_rate(401, 0.3) > soon.learning_rate(401, 0.3)


def test_auto_stays_within_its_bounds():
    policy = auto(1.0, low=1e-3, high=2e-2, clip=2.0)
    assert policy.learning_rate(0, 0.3) == 1e-3, "trial steps too"
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


def test_auto_takes_its_halvings_back_as_numbers_come_again():
    policy = following(1e-2)
    for step in range(1, 10):
        policy.observe(estimate(step, outcome=Outcome.NONFINITE))
    rates = [policy.learning_rate(10, 0.3)]
    for step in range(10, 13):
        policy.observe(estimate(step, 1e-2, error=1e-2))
        rates.append(policy.learning_rate(step + 1, 0.3))
    assert rates == pytest.approx([1.25e-3, 2.5e-3, 5e-3, 1e-2])


def test_auto_says_so_once_the_rate_has_moved_by_half():
    policy = following(1e-2)
    said = [policy.observe(estimate(step, 1.0, error=1e-3)) for step in range(1, 5)]
    assert [bool(text) for text in said] == [False, True, False, True]
    assert (said[1] or "").startswith("step 3: rate 1.00e-2 → 1.56e-2 (the rate that α* suggests, known to ")


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


def test_a_cool_down_that_begins_during_the_search_ends_it():
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
    policy = make_policy(StepSizeConfig(policy="auto_single", cooldown=share), initial_rate=1e-3, total_steps=total)
    assert isinstance(policy, AutoSingle)
    assert policy.cooldown == (NO_COOL_DOWN if expected is None else CoolDown(*expected))


def test_a_cool_down_needs_a_budget_in_steps():
    with pytest.raises(ValueError, match=r"stepsize\.cooldown: 0\.2 .*set budget\.steps"):
        make_policy(StepSizeConfig(policy="auto_single", cooldown=0.2), initial_rate=1e-3, total_steps=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup": -1}, "stepsize.warmup: -1"),
        ({"cooldown": 1.0}, "stepsize.cooldown: 1.0"),
    ],
)
def test_config_errors_name_key_and_value_in_one_line(values, message):
    with pytest.raises(ValueError, match="stepsize") as caught:
        StepSizeConfig(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
