"""Experiment 1 beside what was published: α* along training from one batch and from two, and why they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trainer.records import RunHistory
from trainer.report import BLUE, GREEN, GREY, ORANGE, Table, bin_means, legend, new_figure
from trainer.study.definition import StudyRun
from trainer.study.thesis.alpha import SPREAD, Estimates, burst_figure, decomposition_figure, statistics
from trainer.study.thesis.published import BATCH_ROWS, BEST_LOSS, OBSERVED, PEAK_RATE, SCHEDULE

FIGURE_NAMES = {
    "mean": "mean",
    "median": "median",
    "sd": "standard deviation",
    "min": "lowest",
    "max": "highest",
    "range": "range",
    "sd_over_mean": "coefficient of variation (sd over mean)",
    "sd_over_range": "sd over range",
}
TOGETHER = {
    "correlation_absolute": "correlation of biased and unbiased, suggested rate",
    "correlation_relative": "correlation of biased and unbiased, α*",
    "correlation_slope": "correlation of the numerators dᵀg",
    "correlation_curvature": "correlation of the denominators dᵀGd",
    "hybrid_less_biased": "mean of hybrid − biased, the slope's share",
    "unbiased_less_hybrid": "mean of unbiased − hybrid, the curvature's share",
    "hybrid_less_biased_median": "median of hybrid − biased",
    "unbiased_less_hybrid_median": "median of unbiased − hybrid",
    "cosine_b1_mean": "mean cosine of d2 and g1",
    "cosine_b2_mean": "mean cosine of d2 and g2",
}
BATCH_POINTS = 100
"""Means of the batches' own losses that the picture shows at most."""
SPLIT_COLORS = {"train": BLUE, "validation": ORANGE, "test": GREEN}


def observed_tables(run: StudyRun, history: RunHistory, estimates: Estimates) -> Iterator[Table]:
    """Rates, α* and what goes together, each beside the published value; and the three losses."""
    found = statistics(estimates)
    yield _spread_table(run, found, "absolute")
    yield _spread_table(run, found, "relative")
    yield _together_table(run, found)
    yield _loss_table(history)


def _spread_table(run: StudyRun, found: Mapping[str, float], what: str) -> Table:
    """`absolute`: of the rate that α* suggests; `relative`: of α*."""
    rows: list[tuple[Any, ...]] = [
        _both(FIGURE_NAMES[figure], [f"{kind}_{what}_{figure}" for kind in ("unbiased", "biased")], found)
        for figure in SPREAD
    ]
    if what == "absolute":
        peak = run.config.optimizer.lr or math.nan
        for figure in ("mean", "median"):
            keys = [f"{kind}_absolute_{figure}" for kind in ("unbiased", "biased")]
            ours = [found.get(key, math.nan) / peak for key in keys]
            theirs = [OBSERVED[key] / PEAK_RATE for key in keys]
            rows.append((f"{figure} over the schedule's peak", ours[0], theirs[0], ours[1], theirs[1]))
        rows += [
            _both("negative ones", ["unbiased_negative", "biased_negative"], found),
            _both("share of negative ones", ["unbiased_negative_share", "biased_negative_share"], found),
            ("estimates", found["estimates"], OBSERVED["estimates"], found["estimates"], OBSERVED["estimates"]),
        ]
    titles = {
        "absolute": "The rate that α* suggests, beside the published figures",
        "relative": "α* as a factor of the step, beside the published figures",
    }
    columns = ("figure", "unbiased", "published", "biased", "published ")
    return Table(stem=f"published_{what}", title=titles[what], columns=columns, rows=rows)


def _both(name: str, keys: list[str], found: Mapping[str, float]) -> tuple[Any, ...]:
    return (name, *(value for key in keys for value in (found.get(key), OBSERVED.get(key))))


def _together_table(run: StudyRun, found: Mapping[str, float]) -> Table:
    rows = [
        (name, found.get(key), OBSERVED.get(key), same_sign(found.get(key), OBSERVED.get(key)))
        for key, name in TOGETHER.items()
    ]
    return Table(
        stem="published_bias",
        title="Biased against unbiased, beside the published figures",
        columns=("figure", "here", "published", "sign"),
        rows=rows,
    )


def same_sign(ours: float | None, theirs: float | None) -> str:
    """Whether a figure has the sign of the published one; nothing if either is not known."""
    if ours is None or theirs is None or math.isnan(ours):
        return ""
    return "as published" if (ours > 0) == (theirs > 0) else "differs"


def _loss_table(history: RunHistory) -> Table:
    rows = []
    for split in SPLIT_COLORS:
        table = history.evaluations.get(split)
        if table is None or not np.isfinite(table["loss"]).any():
            continue
        best = int(np.nanargmin(table["loss"]))
        published = BEST_LOSS["steps", SCHEDULE] if split == "validation" else None
        rows.append((split, table["loss"][best], table["step"][best], table["loss"][-1], published))
    columns = ("split", "lowest loss", "after steps", "last loss", "published lowest")
    return Table(stem="published_losses", title="The three losses", columns=columns, rows=rows)


def observed_notes(run: StudyRun, history: RunHistory) -> list[str]:
    """What explains figures that differ from the published ones."""
    config, rows = run.config, run.config.data.batch_rows
    notes = [
        "The published curvatures were evaluated after the step and in one version its direction knew B1's gradient; "
        "here both batches' numbers belong to the weights before the step, and the direction to B2 alone."
    ]
    if rows != BATCH_ROWS:
        notes.append(
            f"A batch has {rows:,} rows here and had {BATCH_ROWS:,}. Smaller batches are noisier: more unbiased "
            "estimates are negative, their rates spread wider, and biased and unbiased ones go together less."
        )
    if config.optimizer.lr is not None and not math.isclose(config.optimizer.lr, PEAK_RATE):
        notes.append(
            f"Suggested rates are in the unit of the schedule's, whose peak is {config.optimizer.lr:.3g} here and was "
            f"{PEAK_RATE:.3g}: compare them over the peak."
        )
    notes.append(
        "Mean, spread and correlation of α* as a factor are made by the few steps whose rate is next to nothing, where "
        "the warm-up begins and the cosine ends; how many of them are measured goes with the length of the run. Even "
        "the sign of the unbiased mean may be theirs. Medians and suggested rates are not."
    )
    if history.evaluations.get("validation"):
        notes.append("Losses are those of this log; another one has another label rate, and losses of its own.")
    return notes


def observed_figures(run: StudyRun, history: RunHistory, estimates: Estimates) -> Iterator[tuple[str, str, Figure]]:
    """Stem, caption and picture of each."""
    interval = run.config.stepsize.interval
    if "biased" in estimates.kinds:
        yield (
            "published_windows",
            "By window of measured steps: mean α*; mean, median and spread of the rate that it suggests, with the "
            "schedule; numerators and denominators.",
            burst_figure(estimates, title=run.name, interval=interval),
        )
    if "biased" in estimates.kinds and "hybrid" in estimates.kinds:
        yield (
            "published_decomposition",
            "unbiased − biased = (hybrid − biased) + (unbiased − hybrid). The hybrid takes its slope from B1 and its "
            "curvature from B2, so the first is the slope's share of the bias and the second the curvature's.",
            decomposition_figure(estimates, title=run.name, interval=interval),
        )
    yield "published_losses", "Loss of all three splits along training.", losses_figure(run, history)


def losses_figure(run: StudyRun, history: RunHistory) -> Figure:
    """Train, validation and test loss along training, over the batches' own."""
    figure, axes = new_figure(f"{run.name}: the three losses", "loss (nats)")
    step, loss = (bin_means(history.steps[name], BATCH_POINTS) for name in ("step", "loss"))
    axes.plot(step, loss, color=GREY, linewidth=1.0, label="of the batches trained on")
    evaluated = []
    for split, color in SPLIT_COLORS.items():
        table = history.evaluations.get(split)
        if table is not None and len(table["step"]):
            axes.plot(table["step"], table["loss"], color=color, marker=".", linewidth=1.5, label=split)
            evaluated.append(table["loss"])
    finite = np.concatenate([*evaluated, np.zeros(0)])
    finite = finite[np.isfinite(finite)]
    if len(finite):
        low, top = float(finite.min()), float(np.quantile(finite, 0.98))
        room = 0.1 * (top - low) or 0.01
        axes.set_ylim(low - room, top + room)
    legend(axes, 4)
    return figure
