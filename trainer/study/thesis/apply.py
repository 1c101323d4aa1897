"""Experiment 2 beside what was published: the median of N estimates, held for I steps, within four budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.report import Table
from trainer.study.comparison import Budget, budgets_of
from trainer.study.definition import Study
from trainer.study.results import Result, RunOutcome
from trainer.study.thesis.observe import same_sign
from trainer.study.thesis.published import (
    ALPHA,
    BATCH_ROWS,
    BEST_CELL,
    BEST_LOSS,
    SCHEDULE,
    SCHEDULE_FREE,
    STEPS,
    STEPS_WITHIN_BASELINE,
)

IN_SECONDS = "-seconds"
"""What the names of the second pass's arms end with."""
RULES = {ALPHA: "α*, best cell", SCHEDULE: "NAdamW, scheduled", SCHEDULE_FREE: "Schedule-Free AdamW"}
COUNTED = (RunOutcome.FINISHED, RunOutcome.UNFINISHED)


def thesis_budgets(study: Study) -> dict[str, tuple[str, Budget]]:
    """By their published names: the budgets that the tables go by, each with what the arms' names end with there."""
    found: dict[str, tuple[str, Budget]] = {}
    for ending, names in (("", ("steps", "half the steps")), (IN_SECONDS, ("long time", "baseline's time"))):
        if f"{ALPHA}{ending}" in study.varied:
            for name, budget in zip(names, budgets_of(study, f"{ALPHA}{ending}"), strict=False):
                found[name] = (ending, budget)
    return found


def applied_tables(study: Study, results: Sequence[Result]) -> Iterator[Table]:
    """Best losses by budget and rule, applied rates by cell, steps completed within the budgets in seconds."""
    yield _loss_table(study, results)
    yield _rate_table(results)
    yield _step_table(study, results)


def _best(results: Sequence[Result], arm: str, budget: Budget) -> tuple[float, Result | None]:
    """The lowest loss of an arm's runs within a budget, and whose it is."""
    mine = [one for one in results if one.run.arm == arm and one.outcome is RunOutcome.FINISHED]
    losses = [(budget.loss(one), one) for one in mine]
    losses = [pair for pair in losses if math.isfinite(pair[0])]
    return min(losses, key=lambda pair: pair[0]) if losses else (math.nan, None)


def _loss_table(study: Study, results: Sequence[Result]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for name, (ending, budget) in thesis_budgets(study).items():
        schedule = _best(results, f"{SCHEDULE}{ending}", budget)[0]
        for rule, text in RULES.items():
            loss, result = _best(results, f"{rule}{ending}", budget)
            published, against = BEST_LOSS.get((name, rule)), BEST_LOSS.get((name, SCHEDULE))
            less = published - against if published is not None and against is not None else None
            mine = loss - schedule if rule != SCHEDULE else None
            cell = f" ({result.run.cell})" if rule == ALPHA and result is not None else ""
            less = less if rule != SCHEDULE else None
            rows.append((f"{budget.name}: {text}{cell}", loss, published, mine, less, same_sign(mine, less)))
    return Table(
        stem="published_best",
        title=f"Best validation loss by budget, beside the published (there {BEST_CELL} was best of the grid in steps)",
        columns=("budget and rule", "here", "published", "less the schedule's", "published ", "sign"),
        rows=rows,
    )


def _rate_table(results: Sequence[Result]) -> Table:
    rows = [
        (
            f"{one.run.arm} {one.run.cell}".strip(),
            one.rate.mean,
            one.rate_median,
            one.rate.low,
            one.rate.high,
            one.rate.high - one.rate.low,
            one.rate.sd,
        )
        for one in results
        if one.outcome in COUNTED
    ]
    return Table(
        stem="published_rates",
        title="Applied rates, warm-up excluded (published as a table whose values are not at hand)",
        columns=("cell", "mean", "median", "lowest", "highest", "range", "sd"),
        rows=rows,
    )


def _step_table(study: Study, results: Sequence[Result]) -> Table:
    budgets = [budget for ending, budget in thesis_budgets(study).values() if ending]
    baseline = next((one.steps for one in results if one.run.arm == SCHEDULE), 0)
    rows: list[tuple[Any, ...]] = []
    for one in results:
        if one.run.config.budget.seconds is not None and one.outcome in COUNTED:
            steps = [budget.steps(one) for budget in budgets]
            shares = [count / baseline if baseline else math.nan for count in steps]
            name = f"{one.run.arm.removesuffix(IN_SECONDS)} {one.run.cell}".strip()
            rows.append((name, *(value for pair in zip(steps, shares, strict=True) for value in pair)))
    if rows:
        blank = [None] * (2 * len(budgets) - 4)
        rows.append(("published: α*", None, None, STEPS_WITHIN_BASELINE, STEPS_WITHIN_BASELINE / STEPS, *blank))
    columns = ["cell"]
    for budget in budgets:
        columns += [f"steps within {budget.name}", "over the schedule's" + " " * (len(columns) // 2)]
    return Table(stem="published_steps", title="Steps within the budgets in seconds", columns=tuple(columns), rows=rows)


def applied_notes(study: Study, results: Sequence[Result]) -> list[str]:
    """What explains figures that differ from the published ones."""
    rows = study.base.data.batch_rows
    notes = [
        "α* cost the published implementation 70 times a plain step, so within the baseline's time it came half as "
        "far. Here it costs about one forward and backward pass where it is measured, so budgets in seconds tell "
        "little that budgets in steps do not.",
        "The published correlations and the published table of applied rates are not at hand as numbers, so theirs "
        "stand here alone.",
    ]
    if rows != BATCH_ROWS:
        notes.append(
            f"A batch has {rows:,} rows here and had {BATCH_ROWS:,}, and the log is another: losses cannot be compared "
            "with the published ones, their differences to the schedule's by their sign alone. Medians of N small "
            "batches are noisier, and fewer of them were wanted where the intervals have no room for N."
        )
    lost = [one for one in results if one.outcome is RunOutcome.DIVERGED and one.run.arm.startswith(ALPHA)]
    if lost:
        counts = ", ".join(str(count) for count in sorted({one.run.config.stepsize.count for one in lost}))
        notes.append(
            f"{len(lost)} runs of α* diverged, with N = {counts}; no published one did, with N of 10 and more. The "
            "median of few estimates is at times many times the rate that is right: a scale at which the intervals "
            "have room for the published N (1/20 and more) says more."
        )
    longest = max((one.steps for one in results), default=0)
    baseline = next((one.steps for one in results if one.run.arm == SCHEDULE), 0)
    if study.settings.scaled_by and baseline and longest > 2 * baseline:
        notes.append(
            f"Within the longest budget up to {longest:,} steps are made, {longest / baseline:.1f} times the "
            "schedule's, over rows that are then read several times; the published runs made less than one pass. "
            "Their best loss is from before they overfit."
        )
    return notes
