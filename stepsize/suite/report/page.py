"""The page of a study: what was asked for and whether it is met, then figures, tables and how they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from stepsize.suite.methods import METHODS
from stepsize.suite.problems.problem import Task
from stepsize.suite.report.figures import write_figures
from stepsize.suite.report.scores import Scores, TaskScores, summarize_method
from stepsize.suite.report.tables import SuiteTable, Value, all_tables, guesses_table, percent, shown_value, troubles
from stepsize.suite.store import write_whole

MEAN_ASKED, WORST_ASKED = 0.02, 0.10
"""What `auto` is held to, and what it aims at below."""
MEAN_AIMED, WORST_AIMED = 0.0, 0.05
SUBJECT = "auto"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #16191d; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem } img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0 } .wide { overflow-x: auto }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #e2e5ea; text-align: right; vertical-align: top }
td:first-child, th:first-child, td.text, th.text { text-align: left } th { border-bottom: 2px solid #a3abb4 }
.met { color: #00735a; font-weight: 600 } .missed { color: #b3410f; font-weight: 600 } small, .small { color: #5a626b }
figure { margin: 1rem 0 } figcaption { color: #5a626b }
"""


def write_suite_report(folder: Path, scores: Scores, *, tasks: Sequence[Task], skipped: Mapping[str, str]) -> Path:
    """Write index.html, the figures and the tables of `scores`; `skipped` has the reason of each task left out.

    All but processor_time.csv, and what the page shows of it, is a function of the runs' losses.

    Raises: SuiteError where matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {table.name: table for table in all_tables(scores, skipped, tasks)}
    for table in tables.values():
        write_whole(folder / f"{table.name}.csv", table.as_csv())
    figures = write_figures(folder, scores)
    page = folder / "index.html"
    write_whole(page, "".join(_page(scores, tables, figures, skipped)).encode())
    return page


def targets(scores: Scores) -> list[tuple[bool, str]]:
    """What `auto` is held to: whether it is met, and the figures. Those that are missed come first."""
    if SUBJECT not in scores.methods or not scores.reported:
        return []
    ours = summarize_method(scores.reported, SUBJECT)
    apart = [row for row in guesses_table(scores).rows if row[1] == SUBJECT and row[-1] == "differs"]
    reported = {found.task.name for found in scores.reported}
    differing = [str(row[0]) for row in apart if row[0] in reported]
    found = [
        (
            ours.mean <= MEAN_ASKED,
            f"Mean regret {percent(ours.mean)} % over {ours.tasks} tasks; at most {100 * MEAN_ASKED:g} % is asked "
            f"for, {100 * MEAN_AIMED:g} % aimed at.",
        ),
        (
            ours.worst <= WORST_ASKED,
            f"Worst task {percent(ours.worst)} % ({ours.worst_task}); at most {100 * WORST_ASKED:g} % is asked for, "
            f"{100 * WORST_AIMED:g} % aimed at.",
        ),
        (
            not differing,
            "From every first guess the same, or within noise, in every task."
            if not differing
            else f"The first guess matters in {', '.join(differing)}.",
        ),
    ]
    for name in scores.methods:
        if METHODS[name].kind == "peer":
            theirs = summarize_method(scores.reported, name)
            found.append(
                (
                    ours.mean < theirs.mean and ours.worst < theirs.worst,
                    f"Against {METHODS[name].title}: mean {percent(ours.mean)} % and {percent(theirs.mean)} %, "
                    f"worst {percent(ours.worst)} % and {percent(theirs.worst)} %.",
                )
            )
    return sorted(found, key=lambda target: target[0])


def _page(
    scores: Scores, tables: Mapping[str, SuiteTable], figures: Sequence[tuple[str, str]], skipped: Mapping[str, str]
) -> Iterable[str]:
    yield f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Rates</title><style>{STYLE}</style>\n'
    yield "<h1>Rules for the learning rate, on a suite of small tasks</h1>\n"
    reported, fitted = len(scores.reported), len(scores.fitted)
    yield f"<p>{reported} tasks are reported, with {scores.seeds} seeds each; {fitted} on which constants of "
    yield "<code>auto</code> were chosen are shown apart and are in no mean. Regret is ln(loss / loss of the best "
    yield "tuned cosine) in per cent, both on test, each run at the evaluation where its validation loss is lowest, "
    yield "seed by seed. Negative is better than the tuned cosine.</p>\n"
    if scores.unfinished:
        names = ", ".join(task.name for task in scores.unfinished)
        yield f'<p class="missed">Not finished, and left out below: {escape(names)}.</p>\n'
    yield from _targets(scores)
    if scores.reported:
        yield "<h2>Mean and worst</h2>\n"
        yield from _summary(scores)
        yield "<h2>Regret by task, per cent</h2>\n"
        yield from _regrets(scores, scores.reported, timed=False)
        yield '<p class="small">± is the standard error over seeds of the difference from the cosine.</p>\n'
    if scores.fitted:
        yield "<h2>Tasks on which constants were chosen, per cent</h2>\n"
        yield from _regrets(scores, scores.fitted, timed=False)
    for name, shown in figures:
        yield f'<figure><img src="{escape(name)}" alt="{escape(shown)}"><figcaption>{escape(shown)}</figcaption>'
        yield "</figure>\n"
    yield from _guesses(scores)
    if scores.done:
        yield "<h2>At equal processor time, per cent</h2>\n"
        yield "<p>What each run has reached when the tuned cosine's run of the same seed is through (and a twentieth "
        yield "more: the clock's noise). Measurements and averages count, evaluations do not.</p>\n"
        yield from _regrets(scores, scores.done, timed=True)
    yield from _list("Diverged, failed, or at the edge of the grid", troubles(scores), "None.")
    reasons = [f"{name}: {reason}." for name, reason in skipped.items()]
    yield from _list("Skipped", reasons, "No task was.")
    yield "<h2>Methods</h2>\n"
    rows = [(METHODS[name].title, METHODS[name].note) for name in scores.methods]
    yield from _table(("method", "what is done"), rows, text=(0, 1))
    yield "<h2>Tasks</h2>\n"
    yield from _table(tables["tasks"].columns, tables["tasks"].rows, text=(0, 1, 5, 6, 7))
    yield from _how(tables)


def _targets(scores: Scores) -> Iterable[str]:
    found = targets(scores)
    if not found:
        return
    yield f"<h2>What <code>{SUBJECT}</code> is held to</h2>\n<ul>\n"
    for met, sentence in found:
        word, kind = ("met", "met") if met else ("not met", "missed")
        yield f'<li><span class="{kind}">{word}</span>: {escape(sentence)}</li>\n'
    yield "</ul>\n"


def _summary(scores: Scores) -> Iterable[str]:
    rows = []
    for name in scores.methods:
        found = summarize_method(scores.reported, name)
        percents = [percent(value) for value in (found.mean, found.worst)]
        timed = [percent(value) for value in (found.timed_mean, found.timed_worst)]
        rows.append((METHODS[name].title, *percents, found.worst_task, *timed, f"{found.diverged} of {found.runs}"))
    head = ("method", "mean", "worst", "worst task", "mean, equal time", "worst, equal time", "diverged")
    yield from _table(head, rows, text=(0, 3))
    optimizers = sorted({found.task.optimizer for found in scores.reported})
    by_optimizer = []
    for name in scores.methods:
        cells = []
        for optimizer in optimizers:
            several = [found for found in scores.reported if found.task.optimizer == optimizer]
            summary = summarize_method(several, name)
            cells.append(f"{percent(summary.mean)} / {percent(summary.worst)}")
        by_optimizer.append((METHODS[name].title, *cells))
    counts = [sum(found.task.optimizer == optimizer for found in scores.reported) for optimizer in optimizers]
    head = [f"{optimizer} ({count})" for optimizer, count in zip(optimizers, counts, strict=True)]
    yield "<p>Mean / worst by the task's optimizer (and how many tasks have it):</p>\n"
    yield from _table(("method", *head), by_optimizer, text=(0,))


def _regrets(scores: Scores, several: Sequence[TaskScores], *, timed: bool) -> Iterable[str]:
    entries = scores.entries
    rows = []
    for found in several:
        cells = []
        for entry in entries:
            score = found.scores[entry]
            if timed:
                cells.append(percent(score.timed_regret))
            else:
                error = "" if score.error != score.error else f" ± {100 * score.error:.1f}"
                cells.append(f"{percent(score.regret)}{error}")
        rows.append((found.task.name, found.task.optimizer, *cells))
    yield from _table(("task", "optimizer", *(entry.title for entry in entries)), rows, text=(0, 1))


def _guesses(scores: Scores) -> Iterable[str]:
    table = guesses_table(scores)
    if not table.rows:
        return
    yield "<h2>Does the first guess matter?</h2>\n"
    yield "<p>Spread is the highest minus the lowest mean regret of the first guesses; noise is twice the standard "
    yield "error of a difference of two such means, from the spread of a regret over seeds.</p>\n"
    yield from _table(table.columns, table.rows, text=(0, 1, 2, 5), digits=3)


def _list(title: str, sentences: Sequence[str], nothing: str) -> Iterable[str]:
    yield f"<h2>{title}</h2>\n"
    if not sentences:
        yield f"<p>{nothing}</p>\n"
        return
    yield "<ul>\n"
    for sentence in sentences:
        yield f"<li>{escape(sentence)}</li>\n"
    yield "</ul>\n"


def _how(tables: Mapping[str, SuiteTable]) -> Iterable[str]:
    links = ", ".join(f'<a href="{name}.csv">{name}.csv</a>' for name in tables)
    yield "<h2>How it was made</h2>\n"
    yield "<p>Tuned rates are chosen by the mean of the lowest validation losses of two seeds on nine half decades, "
    yield "with up to three more where the lowest or the highest wins; the chosen rate then runs with every seed. "
    yield "All methods have the same steps and batches, and are evaluated before training and after every sixteenth "
    yield "of it. A run that diverges counts with its best evaluation before, at worst that of untrained weights; "
    yield f"none is dropped.</p>\n<p>Tables: {links}.</p>\n"


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[Value]], *, text: Sequence[int] = (), digits: int = 4
) -> Iterable[str]:
    """`text` are the columns that are set to the left."""
    yield '<div class="wide"><table>\n<tr>'
    for number, column in enumerate(columns):
        kind = ' class="text"' if number in text else ""
        yield f"<th{kind}>{escape(column.replace('_', ' '))}</th>"
    yield "</tr>\n"
    for row in rows:
        yield "<tr>"
        for number, value in enumerate(row):
            kind = ' class="text"' if number in text else ""
            yield f"<td{kind}>{escape(shown_value(value, digits))}</td>"
        yield "</tr>\n"
    yield "</table></div>\n"
