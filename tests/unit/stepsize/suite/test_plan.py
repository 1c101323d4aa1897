"""Which runs are wanted: rates are chosen on validation, and a grid grows where its edge wins."""

from __future__ import annotations

import math

import pytest

from stepsize.suite.methods import METHODS
from stepsize.suite.plan import choose_rate, grid, half_decade, left, wanted
from stepsize.suite.store import FinishedRun, PlannedRun
from tests.finished_runs import TINY, all_runs, finished

RATES = [half_decade(number) for number in grid("sgd")]


def bowl(best: float, floor: float = 0.5):
    """Losses that are lowest at the rate `best`, and twice that on test."""

    def losses(planned: PlannedRun) -> tuple[float, float]:
        loss = floor + abs(math.log10(planned.rate / best)) + 0.001 * planned.seed
        return loss, 2 * loss

    return losses


def test_the_rate_is_chosen_on_validation_whatever_test_says() -> None:
    def losses(planned: PlannedRun) -> tuple[float, float]:
        validation = abs(math.log10(planned.rate / RATES[4])) + 1
        return validation, abs(math.log10(planned.rate / RATES[2])) + 1

    lookup = all_runs([TINY], losses, methods=["cosine"])
    choice = choose_rate(TINY, METHODS["cosine"], 2, lookup)
    assert choice.chosen == RATES[4]
    assert choice.missing == ()
    assert not choice.at_edge


def test_a_run_is_reported_on_test_where_validation_was_lowest() -> None:
    planned = PlannedRun(task="tiny", method="cosine", rate=0.1, seed=0)
    evaluations = [
        {"step": 0, "seconds": 0.0, "validation": {"raw": 3.0, "averaged": 3.0}, "weights": "raw", "test": 3.0},
        {"step": 5, "seconds": 1.0, "validation": {"raw": 2.0, "averaged": 1.5}, "weights": "averaged", "test": 2.5},
        {"step": 9, "seconds": 2.0, "validation": {"raw": 1.9, "averaged": 1.8}, "weights": None, "test": None},
    ]
    run = FinishedRun(run=planned, record={"evaluations": evaluations})
    assert (run.validation, run.test, run.seconds) == (1.5, 2.5, 2.0)
    assert run.best(seconds=0.9)["test"] == 3.0


def test_of_two_equal_rates_the_lower_is_chosen() -> None:
    lookup = all_runs([TINY], lambda planned: (2.0 if planned.rate in RATES[3:5] else 3.0, 1.0), methods=["cosine"])
    assert choose_rate(TINY, METHODS["cosine"], 2, lookup).chosen == RATES[3]


@pytest.mark.parametrize(
    ("best", "extended", "at_edge"),
    [(RATES[0] / 8, 3, False), (RATES[-1] * 3.2, 2, False), (RATES[-1] * 1e4, 3, True), (RATES[0] / 1e4, 3, True)],
    ids=["two below", "one above", "far above", "far below"],
)
def test_a_grid_grows_beyond_an_edge_that_wins(best: float, extended: int, at_edge: bool) -> None:
    lookup = all_runs([TINY], bowl(best), methods=["cosine"])
    choice = choose_rate(TINY, METHODS["cosine"], 2, lookup)
    assert len(choice.rates) == len(RATES) + extended
    assert choice.at_edge == at_edge
    nearest = min(choice.rates, key=lambda rate: abs(math.log10(rate / best)))
    assert choice.chosen == nearest


def test_the_grid_is_run_with_two_seeds_and_the_chosen_rate_with_all() -> None:
    known = {}
    first = wanted(TINY, ["cosine"], 5, known.get)
    assert {(run.rate, run.seed) for run in first} == {(rate, seed) for rate in RATES for seed in range(2)}
    assert left(TINY, ["cosine"], 5, known.get) == len(RATES) * 2 + 3
    known |= {run: finished(run, *bowl(RATES[4])(run)) for run in first}
    rest = wanted(TINY, ["cosine"], 5, known.get)
    assert {(run.rate, run.seed) for run in rest} == {(RATES[4], seed) for seed in range(2, 5)}
    assert left(TINY, ["cosine"], 5, known.get) == 3
    known |= {run: finished(run, 1.0, 1.0) for run in rest}
    assert wanted(TINY, ["cosine"], 5, known.get) == []


def test_other_methods_run_at_their_own_rates_with_all_seeds() -> None:
    runs = wanted(TINY, ["auto", "prodigy"], 3, lambda _: None)
    assert {(run.method, run.rate) for run in runs} == {("auto", 1e-6), ("auto", 0.01), ("auto", 1.0), ("prodigy", 1.0)}
    assert len(runs) == 4 * 3
