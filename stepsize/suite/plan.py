"""Which runs a study wants next: a pure function of those it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from stepsize.suite.methods import METHODS, Method
from stepsize.suite.problems.problem import OptimizerName, Task
from stepsize.suite.store import FinishedRun, PlannedRun

SELECTION_SEEDS = 2
MOST_EXTENSIONS = 3
FIRST_HALF_DECADE: dict[OptimizerName, int] = {"sgd": -5, "momentum": -7, "adamw": -9, "nadamw": -9}
"""The grid of an optimizer begins at 10^(this/2): SGD's from 3.2e-3 to 32, Adam's from 3.2e-5 to 0.32."""
GRID = 9

Lookup = Callable[[PlannedRun], FinishedRun | None]


def half_decade(number: int) -> float:
    """10^(number/2), in three digits."""
    return float(f"{10 ** (number / 2):.3g}")


def grid(optimizer: OptimizerName) -> list[int]:
    """Half decades, from the lowest rate up."""
    first = FIRST_HALF_DECADE[optimizer]
    return list(range(first, first + GRID))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How far the choice of a rate is."""

    missing: tuple[PlannedRun, ...]
    """Runs that are wanted before it can go on."""
    rates: tuple[float, ...]
    """Tried so far or wanted, ascending."""
    chosen: float | None
    """The rate, once it is chosen."""
    at_edge: bool = False
    """Whether the chosen rate is the lowest or the highest tried, with the grid extended as far as it may be."""


def lowest(losses: Mapping[float, float]) -> float:
    """The rate with the lowest loss; the lower rate where two are equal."""
    return min(sorted(losses), key=lambda rate: losses[rate])


def choose_rate(task: Task, method: Method, seeds: int, lookup: Lookup) -> Choice:
    """Choose by the mean of the lowest validation losses over the first two seeds.

    Where the lowest or the highest rate wins, the grid grows by one beyond it, three times at most.
    """
    tried = grid(task.optimizer)
    selection = range(min(SELECTION_SEEDS, seeds))
    extended = 0
    while True:
        rates = tuple(half_decade(number) for number in tried)
        runs = {
            rate: [PlannedRun(task=task.name, method=method.name, rate=rate, seed=seed) for seed in selection]
            for rate in rates
        }
        missing = tuple(run for several in runs.values() for run in several if lookup(run) is None)
        if missing:
            return Choice(missing=missing, rates=rates, chosen=None)
        losses = {rate: mean_of(_validation(lookup(run)) for run in several) for rate, several in runs.items()}
        best = lowest(losses)
        at_edge = best in (rates[0], rates[-1])
        if not at_edge or extended == MOST_EXTENSIONS:
            return Choice(missing=(), rates=rates, chosen=best, at_edge=at_edge)
        tried = [tried[0] - 1, *tried] if best == rates[0] else [*tried, tried[-1] + 1]
        extended += 1


def _validation(run: FinishedRun | None) -> float:
    assert run is not None
    return run.validation


def mean_of(numbers: Iterable[float]) -> float:
    """Arithmetic mean; nan of nothing."""
    several = list(numbers)
    return math.fsum(several) / len(several) if several else math.nan


def rates_of(task: Task, method: Method, seeds: int, lookup: Lookup) -> tuple[float, ...]:
    """The rates that are reported: the chosen one, once there is one, or the method's own."""
    if method.kind != "tuned":
        return method.rates
    chosen = choose_rate(task, method, seeds, lookup).chosen
    return () if chosen is None else (chosen,)


def reported_runs(task: Task, method: Method, rate: float, seeds: int) -> list[PlannedRun]:
    """Of all seeds at this rate."""
    return [PlannedRun(task=task.name, method=method.name, rate=rate, seed=seed) for seed in range(seeds)]


def wanted(task: Task, chosen_methods: Iterable[str], seeds: int, lookup: Lookup) -> list[PlannedRun]:
    """The runs that are missing and can be begun now, baselines first; none when the task is done."""
    found: list[PlannedRun] = []
    for name in chosen_methods:
        method = METHODS[name]
        if method.kind == "tuned":
            found += choose_rate(task, method, seeds, lookup).missing
        for rate in rates_of(task, method, seeds, lookup):
            found += [run for run in reported_runs(task, method, rate, seeds) if lookup(run) is None]
    return found


def left(task: Task, chosen_methods: Iterable[str], seeds: int, lookup: Lookup) -> int:
    """How many runs the task still needs, as far as can be told: an edge of the grid may still win."""
    total = 0
    for name in chosen_methods:
        method = METHODS[name]
        if method.kind == "tuned":
            choice = choose_rate(task, method, seeds, lookup)
            total += len(choice.missing) + (max(0, seeds - SELECTION_SEEDS) if choice.chosen is None else 0)
        for rate in rates_of(task, method, seeds, lookup):
            total += sum(lookup(run) is None for run in reported_runs(task, method, rate, seeds))
    return total
