"""Regret against the tuned cosine, seed by seed, and what is in its means."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from stepsize.suite.plan import Lookup
from stepsize.suite.report import Entry, score
from stepsize.suite.report.page import targets
from stepsize.suite.report.scores import Scores, summarize_method
from stepsize.suite.report.tables import guesses_table, percent, profile, summary_table, troubles
from stepsize.suite.store import FinishedRun, PlannedRun
from tests.finished_runs import TINY, all_runs, finished

OTHER = replace(TINY, name="other")
FITTED = replace(TINY, name="known", fitted=True)
METHODS = ["cosine", "auto", "prodigy"]


def scored(factors, *, tasks=(TINY,), seeds: int = 2) -> Scores:
    """Losses `factors(run)` times the tuned cosine's; a cosine has 1 + seed at 0.3, and more elsewhere."""

    def losses(planned: PlannedRun) -> tuple[float, float]:
        base = 1.0 + planned.seed
        away = 1 + abs(math.log10(planned.rate / 0.316)) if planned.method == "cosine" else factors(planned)
        return base * away, base * away

    return score(tasks, METHODS, seeds, all_runs(tasks, losses, seeds=seeds, methods=METHODS))


def changed(lookup: Lookup, planned: PlannedRun, run: FinishedRun) -> Lookup:
    return lambda asked: run if asked == planned else lookup(asked)


def test_regret_is_the_mean_logarithm_over_seeds() -> None:
    [found] = scored(lambda planned: 1.2 if planned.seed else 1.1).done
    regret = found.scores[Entry("prodigy")]
    assert regret.regret == pytest.approx((math.log(1.1) + math.log(1.2)) / 2, rel=1e-12)
    assert regret.error == pytest.approx(abs(math.log(1.1) - math.log(1.2)) / 2, rel=1e-12)
    assert found.scores[Entry("cosine")].regrets == (0.0, 0.0)


def test_a_method_with_several_guesses_is_worth_their_mean_and_its_worst_is_the_worst_guess() -> None:
    factor = {1e-6: 1.0, 1e-2: 1.0, 1.0: 1.5}
    found = scored(lambda planned: factor.get(planned.rate, 2.0))
    summary = summarize_method(found.reported, "auto")
    assert summary.mean == pytest.approx(math.log(1.5) / 3)
    assert summary.worst == pytest.approx(math.log(1.5))
    assert summary.runs == 6


def test_tasks_that_constants_were_chosen_on_are_in_no_mean_and_no_profile() -> None:
    found = scored(lambda planned: 3.0 if planned.task == "known" else 1.1, tasks=(TINY, FITTED))
    assert [task.task.name for task in found.reported] == ["tiny"]
    assert [task.task.name for task in found.fitted] == ["known"]
    rows = {row[0]: row for row in summary_table(found).rows if row[1] == "all"}
    assert rows["auto"][2] == 1
    assert rows["auto"][4] == pytest.approx(100 * math.log(1.1))
    assert all("known" not in sentence for _, sentence in targets(found))
    assert profile(found.reported, METHODS)["auto"] == [pytest.approx(math.log(1.1))]


@pytest.mark.parametrize(
    ("from_one", "verdict"),
    [({0: 1.1, 1: 1.3}, "identical"), ({0: 1.12, 1: 1.27}, "within noise"), ({0: 2.1, 1: 2.3}, "differs")],
)
def test_whether_the_first_guess_matters(from_one: dict[int, float], verdict: str) -> None:
    found = scored(lambda planned: from_one[planned.seed] if planned.rate == 1.0 else {0: 1.1, 1: 1.3}[planned.seed])
    [row] = [row for row in guesses_table(found).rows if row[1] == "auto"]
    assert row[-1] == verdict


def test_the_noise_of_guesses_is_twice_the_standard_error_of_a_difference() -> None:
    found = scored(lambda planned: {0: 1.0, 1: math.e**0.1, 2: math.e**0.2}[planned.seed], seeds=3)
    spread = found.done[0].guesses("auto")
    assert spread is not None
    assert spread.noise == pytest.approx(2 * math.sqrt(2) * 0.1 / math.sqrt(3))


def test_a_run_that_diverges_counts_with_the_best_it_had() -> None:
    lookup = all_runs([TINY], lambda _: (1.0, 1.0), methods=METHODS)
    planned = PlannedRun(task="tiny", method="prodigy", rate=1.0, seed=1)
    run = FinishedRun(run=planned, record={"evaluations": finished(planned, 1, 1).record["evaluations"][:1]})
    run.record.update(diverged=True, error="RuntimeError: no")
    found = score([TINY], METHODS, 2, changed(lookup, planned, run))
    assert found.done[0].scores[Entry("prodigy")].regrets == (0.0, math.log(9.0))
    assert summarize_method(found.reported, "prodigy").diverged == 1
    said = " ".join(troubles(found))
    assert "1 of 2 runs of Prodigy diverged" in said
    assert "Prodigy raised RuntimeError: no" in said


def test_at_equal_time_a_slow_method_has_what_it_had_reached() -> None:
    lookup = all_runs([TINY], lambda _: (1.0, 1.0), methods=METHODS)
    slow = PlannedRun(task="tiny", method="prodigy", rate=1.0, seed=0)
    within = PlannedRun(task="tiny", method="prodigy", rate=1.0, seed=1)
    lookup = changed(lookup, slow, finished(slow, 1.0, 1.0, seconds=1.06))
    lookup = changed(lookup, within, finished(within, 1.0, 1.0, seconds=1.04))
    found = score([TINY], METHODS, 2, lookup).done[0].scores[Entry("prodigy")]
    assert found.timed_regrets == (math.log(9.0), 0.0)
    assert found.regrets == (0.0, 0.0)


def test_a_task_with_a_missing_run_is_left_out_and_named() -> None:
    lookup = all_runs([TINY, OTHER], lambda _: (1.0, 1.0), methods=METHODS)
    missing = PlannedRun(task="other", method="auto", rate=1.0, seed=1)
    found = score([TINY, OTHER], METHODS, 2, lambda planned: None if planned == missing else lookup(planned))
    assert [task.task.name for task in found.done] == ["tiny"]
    assert found.unfinished == (OTHER,)


def test_what_is_missed_is_said_first() -> None:
    good = targets(scored(lambda planned: 1.0 if planned.method == "auto" else 1.2))
    assert all(met for met, _ in good)
    bad = targets(scored(lambda planned: {"auto": 1.3, "prodigy": 1.2}[planned.method]))
    assert [met for met, _ in bad] == [False, False, False, True]
    assert any("mean +26.2 % and +18.2 %" in sentence for _, sentence in bad)


def test_no_per_cent_is_minus_nought() -> None:
    assert [percent(value) for value in (-0.0, -1e-5, 0.0123)] == ["+0.0", "+0.0", "+1.2"]
