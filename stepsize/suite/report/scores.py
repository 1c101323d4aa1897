"""Regret: how far a method's loss lies above the best tuned cosine's, from the runs of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stepsize.suite.methods import METHODS, REFERENCE
from stepsize.suite.plan import Choice, Lookup, choose_rate, mean_of, rates_of, reported_runs
from stepsize.suite.problems.problem import Task
from stepsize.suite.store import FinishedRun

TIME_ALLOWANCE = 1.05


@dataclass(frozen=True, order=True)
class Entry:
    """What is compared: a method, and of one that begins at several first guesses one of these."""

    method: str
    guess: float | None = None

    @property
    def title(self) -> str:
        """For people."""
        title = METHODS[self.method].title
        return title if self.guess is None else f"{title} from {self.guess:g}"


def deviation(numbers: Iterable[float]) -> float:
    """Standard deviation of a sample; nan of fewer than two numbers."""
    several = list(numbers)
    if len(several) < 2:
        return math.nan
    middle = mean_of(several)
    return math.sqrt(math.fsum((number - middle) ** 2 for number in several) / (len(several) - 1))


@dataclass(frozen=True, kw_only=True)
class Score:
    """One entry in one task. Regrets are natural logarithms of ratios of losses, 0.01 being about one per cent."""

    runs: tuple[FinishedRun, ...]
    """One a seed."""
    rate: float
    """The rate that was chosen, or where it began."""
    regrets: tuple[float, ...]
    """ln(loss / loss of the tuned cosine of the same seed)."""
    timed_regrets: tuple[float, ...]
    """The same with what the entry had reached when the cosine's processor time was used up."""

    @property
    def regret(self) -> float:
        """Mean over seeds."""
        return mean_of(self.regrets)

    @property
    def error(self) -> float:
        """Standard error of the mean; nan of one seed."""
        return deviation(self.regrets) / math.sqrt(len(self.regrets))

    @property
    def timed_regret(self) -> float:
        """Mean over seeds, at equal processor time."""
        return mean_of(self.timed_regrets)

    @property
    def loss(self) -> float:
        """Mean test loss over seeds."""
        return mean_of(run.test for run in self.runs)

    @property
    def seconds(self) -> float:
        """Mean processor seconds of a run's training."""
        return mean_of(run.seconds for run in self.runs)

    @property
    def diverged(self) -> int:
        """How many runs ended early or at a loss that is not finite; they count with their best evaluation before."""
        return sum(bool(run.record["diverged"]) for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class GuessSpread:
    """Whether it matters where a method begins, in one task."""

    losses: dict[float, float]
    """Mean test loss from each first guess."""
    spread: float
    """Highest minus lowest mean regret."""
    noise: float
    """2·√2·s/√n: twice the standard error of a difference of two means, s being the standard deviation of a regret
    over seeds, root mean square over guesses; nan of one seed."""
    identical: bool
    """Whether the runs of each seed end at the same loss, bit for bit."""

    @property
    def verdict(self) -> str:
        """identical, within noise, or differs."""
        if self.identical:
            return "identical"
        return "within noise" if self.spread <= self.noise else "differs"


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Every entry in one task that is done."""

    task: Task
    scores: dict[Entry, Score]
    choices: dict[str, Choice]
    """Of tuned methods."""
    curves: dict[str, dict[float, tuple[float, float]]]
    """Of tuned methods: rate → mean loss on validation and on test of the runs that the rate was chosen by."""

    def of(self, method: str) -> dict[Entry, Score]:
        """The entries of a method."""
        return {entry: found for entry, found in self.scores.items() if entry.method == method}

    def regret(self, method: str) -> float:
        """Mean over the method's first guesses."""
        return mean_of(found.regret for found in self.of(method).values())

    def timed_regret(self, method: str) -> float:
        """The same at equal processor time."""
        return mean_of(found.timed_regret for found in self.of(method).values())

    def guesses(self, method: str) -> GuessSpread | None:
        """Of a method with several first guesses."""
        found = self.of(method)
        if len(found) < 2:
            return None
        regrets = [score.regret for score in found.values()]
        spread_over_seeds = [deviation(score.regrets) for score in found.values()]
        s = math.sqrt(mean_of(sd**2 for sd in spread_over_seeds))
        seeds = len(next(iter(found.values())).runs)
        by_seed = zip(*([run.test for run in score.runs] for score in found.values()), strict=True)
        return GuessSpread(
            losses={entry.guess or math.nan: score.loss for entry, score in found.items()},
            spread=max(regrets) - min(regrets),
            noise=2 * math.sqrt(2 / seeds) * s,
            identical=all(len(set(losses)) == 1 for losses in by_seed),
        )


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """A method over several tasks."""

    tasks: int
    mean: float
    """Of the tasks' regrets, each the mean over first guesses."""
    worst: float
    """The highest regret of any task and first guess."""
    worst_task: str
    timed_mean: float
    timed_worst: float
    diverged: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a study found."""

    seeds: int
    methods: tuple[str, ...]
    done: tuple[TaskScores, ...]
    unfinished: tuple[Task, ...] = ()

    @property
    def reported(self) -> tuple[TaskScores, ...]:
        """Tasks that no constant was chosen on."""
        return tuple(found for found in self.done if not found.task.fitted)

    @property
    def fitted(self) -> tuple[TaskScores, ...]:
        """The others, which are in no mean."""
        return tuple(found for found in self.done if found.task.fitted)

    @property
    def entries(self) -> list[Entry]:
        """Of all tasks, in the order of the methods."""
        return list(dict.fromkeys(entry for found in self.done for entry in found.scores))


def summarize_method(several: Sequence[TaskScores], method: str) -> MethodSummary:
    """`method` over `several` tasks, of which there is at least one."""
    worst, worst_task = max((found.regret, task.task.name) for task in several for found in task.of(method).values())
    every = [found for task in several for found in task.of(method).values()]
    return MethodSummary(
        tasks=len(several),
        mean=mean_of(task.regret(method) for task in several),
        worst=worst,
        worst_task=worst_task,
        timed_mean=mean_of(task.timed_regret(method) for task in several),
        timed_worst=max(found.timed_regret for found in every),
        diverged=sum(found.diverged for found in every),
        runs=sum(len(found.runs) for found in every),
    )


def score(tasks: Iterable[Task], methods: Sequence[str], seeds: int, lookup: Lookup) -> Scores:
    """Score every task whose runs are all there. `methods` has the reference, the tuned cosine, among them."""
    done, unfinished = [], []
    for task in tasks:
        found = score_task(task, methods, seeds, lookup)
        if found is None:
            unfinished.append(task)
        else:
            done.append(found)
    return Scores(seeds=seeds, methods=tuple(methods), done=tuple(done), unfinished=tuple(unfinished))


def score_task(task: Task, methods: Sequence[str], seeds: int, lookup: Lookup) -> TaskScores | None:
    """The task's scores, or None where a run is missing."""
    runs: dict[Entry, tuple[FinishedRun, ...]] = {}
    rates: dict[Entry, float] = {}
    choices = {name: choose_rate(task, METHODS[name], seeds, lookup) for name in methods if is_tuned(name)}
    for name in methods:
        method = METHODS[name]
        reported = rates_of(task, method, seeds, lookup)
        if not reported:
            return None
        for rate in reported:
            entry = Entry(name, rate if len(reported) > 1 else None)
            found = [lookup(planned) for planned in reported_runs(task, method, rate, seeds)]
            there = tuple(run for run in found if run is not None)
            if len(there) < len(found):
                return None
            runs[entry], rates[entry] = there, rate
    reference = runs[Entry(REFERENCE)]
    scores = {
        entry: Score(
            runs=several,
            rate=rates[entry],
            regrets=_regrets(several, reference, timed=False),
            timed_regrets=_regrets(several, reference, timed=True),
        )
        for entry, several in runs.items()
    }
    curves = {name: _curve(task, name, choice, seeds, lookup) for name, choice in choices.items()}
    return TaskScores(task=task, scores=scores, choices=choices, curves=curves)


def is_tuned(method: str) -> bool:
    """Whether its rate is chosen from a grid."""
    return METHODS[method].kind == "tuned"


def _regrets(runs: Sequence[FinishedRun], reference: Sequence[FinishedRun], *, timed: bool) -> tuple[float, ...]:
    """ln of `runs`' losses at their best evaluation over those that `reference` has at its end, seed by seed.

    Timed ones have the best evaluation of as much processor time as the reference took, and a twentieth more: two
    runs of one kind differ by that much.
    """
    regrets = []
    for run, other in zip(runs, reference, strict=True):
        loss = run.best(TIME_ALLOWANCE * other.seconds if timed else None)["test"]
        regrets.append(math.log(loss / other.test))
    return tuple(regrets)


def _curve(task: Task, name: str, choice: Choice, seeds: int, lookup: Lookup) -> dict[float, tuple[float, float]]:
    curve = {}
    for rate in choice.rates:
        found = [lookup(run) for run in reported_runs(task, METHODS[name], rate, min(2, seeds))]
        there = [run for run in found if run is not None]
        curve[rate] = (mean_of(run.validation for run in there), mean_of(run.test for run in there))
    return curve
