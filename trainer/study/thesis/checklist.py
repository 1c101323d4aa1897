"""The published study's own list of tables and figures, ticked off."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Collection
from dataclasses import dataclass

from trainer.report import Table


@dataclass(frozen=True, kw_only=True)
class Item:
    """One table or figure that the published study has."""

    name: str
    stems: tuple[str, ...]
    """Patterns of the names of the pictures and tables here that show it."""
    missing: str
    """Why it is not here, where it is not."""


NO_ESTIMATES = "no run has measured α* with these estimators yet"
NO_GRID = "no grid run has finished within that budget yet"
OBSERVE = (
    Item(name="mean α* by window", stems=("published_windows",), missing=NO_ESTIMATES),
    Item(
        name="mean, median and sd of the suggested rate by window, with the schedule",
        stems=("published_windows",),
        missing=NO_ESTIMATES,
    ),
    Item(name="numerators and denominators", stems=("published_windows",), missing=NO_ESTIMATES),
    Item(
        name="train, validation and test loss along training",
        stems=("published_losses",),
        missing="no evaluation has been made yet",
    ),
    Item(
        name="hybrid − biased and unbiased − hybrid, figure and means",
        stems=("published_decomposition", "published_bias"),
        missing="the run did not measure the hybrid (stepsize.measuring.estimators)",
    ),
    Item(
        name="suggested rate: mean, median, sd, range, coefficient of variation, sd over range",
        stems=("published_absolute",),
        missing=NO_ESTIMATES,
    ),
    Item(name="share of negative estimates", stems=("published_absolute",), missing=NO_ESTIMATES),
    Item(name="α* as a factor: mean, median and spread", stems=("published_relative",), missing=NO_ESTIMATES),
    Item(
        name="correlations biased–unbiased, of numerators, of denominators",
        stems=("published_bias",),
        missing=NO_ESTIMATES,
    ),
    Item(name="mean cosines of d2 with g1 and g2", stems=("published_bias",), missing=NO_ESTIMATES),
)
APPLY = (
    Item(name="heat map of best loss, step budget", stems=("heat_alpha",), missing=NO_GRID),
    Item(name="heat map, half the steps", stems=("heat_alpha_within_*_steps",), missing=NO_GRID),
    Item(name="heat map, the baseline's time", stems=("heat_alpha-seconds_within_*_seconds",), missing=NO_GRID),
    Item(name="heat map, 4.5 times that time", stems=("heat_alpha-seconds",), missing=NO_GRID),
    Item(name="Pearson r and p of best loss with I, with N", stems=("correlations",), missing=NO_GRID),
    Item(
        name="Pearson r and p of best loss with the steps completed",
        stems=("correlations_steps",),
        missing="within a budget in steps all complete the same; no run in seconds has finished yet",
    ),
    Item(name="best losses against both baselines, by budget", stems=("published_best",), missing=NO_GRID),
    Item(name="applied rates along training", stems=("rates",), missing=NO_GRID),
    Item(name="mean, median, range and sd of the applied rates", stems=("published_rates",), missing=NO_GRID),
    Item(
        name="steps completed within each time budget",
        stems=("published_steps",),
        missing="no run with a budget in seconds has finished yet",
    ),
    Item(name="losses along training", stems=("progress",), missing="no evaluation has been made yet"),
)
ELSEWHERE = (
    ("Table 4.1, what α* costs", "alphastream study cost", "a command of its own"),
    ("check 4.1.1, one parameter and one sample", "alphastream study sanity", "a command of its own"),
)


def checklist(published: str, there: Collection[str]) -> Table:
    """The list of the experiment, each item with where it is here, or why it is not.

    `there` has the stems of the pictures and tables that this report shows.
    """
    items = OBSERVE if published == "thesis-observe" else APPLY
    other = "thesis-apply" if published == "thesis-observe" else "thesis-observe"
    rows: list[tuple[str, str, str]] = []
    for item in items:
        found = [fnmatch.filter(there, stem) for stem in item.stems]
        here = ", ".join(dict.fromkeys(itertools.chain.from_iterable(found))) if all(found) else ""
        rows.append((item.name, here, "✓" if here else f"not yet: {item.missing}"))
    rows += [(name, where, what) for name, where, what in ELSEWHERE]
    rows.append(("the other experiment", f"alphastream study {other}", "a study of its own"))
    return Table(
        stem="published_list",
        title="What the published study shows, and where it is here",
        columns=("item", "table or figure", "here"),
        rows=rows,
    )
