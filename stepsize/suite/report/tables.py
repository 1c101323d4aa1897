"""The tables of a study, as rows of text and numbers that a CSV file and a page show alike."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepsize.suite.methods import METHODS
from stepsize.suite.problems.problem import Task
from stepsize.suite.report.scores import Scores, TaskScores, summarize_method

Value = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class SuiteTable:
    """A table, its columns named as in its CSV file."""

    name: str
    """Of its file, without .csv."""
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    def as_csv(self) -> bytes:
        """Numbers in six digits; nothing where there is no number."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[shown_value(value) for value in row] for row in self.rows])
        return text.getvalue().encode()


def shown_value(value: Value, digits: int = 6) -> str:
    """As text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def percent(regret: float) -> str:
    """A regret in per cent, with its sign."""
    return f"{round(100 * regret, 1) + 0.0:+.1f}"  # + 0.0 makes −0 a 0


def summary_table(scores: Scores) -> SuiteTable:
    """A row for each method: mean and worst regret in per cent, over all reported tasks and over each optimizer's."""
    rows: list[tuple[Value, ...]] = []
    optimizers = sorted({found.task.optimizer for found in scores.reported})
    for name in scores.methods if scores.reported else ():
        for optimizer in ("all", *optimizers):
            several = [found for found in scores.reported if optimizer in ("all", found.task.optimizer)]
            found = summarize_method(several, name)
            row = (100 * found.mean, 100 * found.worst, found.worst_task, found.diverged, found.runs)
            rows.append((name, optimizer, found.tasks, *row))
    columns = ("method", "optimizer", "tasks", "mean_regret_percent", "worst_regret_percent", "worst_task")
    return SuiteTable(name="summary", columns=(*columns, "diverged_runs", "runs"), rows=tuple(rows))


def regret_table(scores: Scores) -> SuiteTable:
    """A row for each task, method and first guess."""
    rows: list[tuple[Value, ...]] = []
    for found in scores.done:
        task = found.task
        for entry, score in found.scores.items():
            head = (task.name, task.group, task.optimizer, "yes" if task.fitted else "no", entry.method, score.rate)
            tail = (score.loss, 100 * score.regret, 100 * score.error, len(score.runs), score.diverged)
            rows.append((*head, *tail))
    columns = ("task", "group", "optimizer", "fitted", "method", "rate_or_guess", "test_loss", "regret_percent")
    return SuiteTable(
        name="regret", columns=(*columns, "standard_error_percent", "seeds", "diverged_runs"), rows=tuple(rows)
    )


def guesses_table(scores: Scores) -> SuiteTable:
    """A row for each task and method with several first guesses: does it matter where it begins?"""
    rows: list[tuple[Value, ...]] = []
    for found in scores.done:
        for name in scores.methods:
            spread = found.guesses(name)
            if spread is not None:
                losses = "; ".join(f"{guess:g}: {loss:.6g}" for guess, loss in spread.losses.items())
                numbers = (100 * spread.spread, 100 * spread.noise)
                rows.append((found.task.name, name, losses, *numbers, spread.verdict))
    columns = ("task", "method", "test_loss_by_first_guess", "spread_percent", "noise_percent", "verdict")
    return SuiteTable(name="guesses", columns=columns, rows=tuple(rows))


def rates_table(scores: Scores) -> SuiteTable:
    """A row for each rate that was tried, with the losses of the seeds that it was chosen by."""
    rows: list[tuple[Value, ...]] = []
    for found in scores.done:
        for name, curve in found.curves.items():
            choice = found.choices[name]
            for rate, (validation, test) in curve.items():
                said = ""
                if rate == choice.chosen:
                    said = "chosen, at the edge" if choice.at_edge else "chosen"
                rows.append((found.task.name, name, rate, validation, test, said))
    columns = ("task", "method", "rate", "validation_loss", "test_loss", "note")
    return SuiteTable(name="rates", columns=columns, rows=tuple(rows))


def time_table(scores: Scores) -> SuiteTable:
    """A row for each task and method: processor time, and regret when the tuned cosine's is used up."""
    rows: list[tuple[Value, ...]] = []
    for found in scores.done:
        for entry, score in found.scores.items():
            rows.append((found.task.name, entry.method, score.rate, score.seconds, 100 * score.timed_regret))
    columns = ("task", "method", "rate_or_guess", "processor_seconds", "regret_at_equal_time_percent")
    return SuiteTable(name="processor_time", columns=columns, rows=tuple(rows))


def tasks_table(scores: Scores, skipped: Mapping[str, str], tasks: Sequence[Task]) -> SuiteTable:
    """A row for each task of the suite, and what became of it."""
    done = {found.task.name for found in scores.done}
    rows: list[tuple[Value, ...]] = []
    for task in tasks:
        state = "done" if task.name in done else skipped.get(task.name, "not finished")
        fitted = "constants were chosen on it" if task.fitted else "reported"
        rows.append((task.name, task.title, task.steps, task.rows, task.held, fitted, task.apart, state))
    columns = ("task", "what", "steps", "training_rows", "test_rows", "use", "differs_from_fitted_tasks_by", "state")
    return SuiteTable(name="tasks", columns=columns, rows=tuple(rows))


def troubles(scores: Scores) -> list[str]:
    """Runs that ended early or raised an error, and rates chosen at an edge: a sentence each."""
    said = []
    for found in scores.done:
        for name, choice in found.choices.items():
            if choice.at_edge and choice.chosen is not None:
                said.append(f"{found.task.name}: {METHODS[name].title} is best at the edge, {choice.chosen:g}.")
        for entry, score in found.scores.items():
            if score.diverged:
                said.append(f"{found.task.name}: {score.diverged} of {len(score.runs)} runs of {entry.title} diverged.")
            errors = sorted({str(run.record["error"]) for run in score.runs if run.record.get("error")})
            said += [f"{found.task.name}: {entry.title} raised {error}" for error in errors]
    return said


def all_tables(scores: Scores, skipped: Mapping[str, str], tasks: Sequence[Task]) -> list[SuiteTable]:
    """Every table of the study; `processor_time` alone depends on the machine's clock."""
    return [
        summary_table(scores),
        regret_table(scores),
        guesses_table(scores),
        rates_table(scores),
        time_table(scores),
        tasks_table(scores, skipped, tasks),
    ]


def profile(several: Sequence[TaskScores], methods: Sequence[str]) -> dict[str, list[float]]:
    """Of each method, how far (in ln) it lies above the best method in each task, ascending."""
    above: dict[str, list[float]] = {name: [] for name in methods}
    for found in several:
        best = min(found.regret(name) for name in methods)
        for name in methods:
            above[name].append(found.regret(name) - best)
    return {name: sorted(distances) for name, distances in above.items()}
