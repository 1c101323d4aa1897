"""What a report of a published study's rerun has beside the tables of any study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from trainer.records import RunHistory
from trainer.report import Table
from trainer.study.definition import Study
from trainer.study.results import Result, RunOutcome
from trainer.study.thesis.alpha import Estimates
from trainer.study.thesis.apply import applied_notes, applied_tables
from trainer.study.thesis.observe import observed_figures, observed_notes, observed_tables


@dataclass(frozen=True, kw_only=True)
class Section:
    """Sentences, pictures (stem, caption, figure) and tables."""

    said: Sequence[str] = ()
    pictures: Sequence[tuple[str, str, Figure]] = ()
    tables: Sequence[Table] = ()


def thesis_section(study: Study, results: Sequence[Result], out: Path) -> Section:
    """The figures of the study beside the published ones, as far as its runs are; nothing for any other study."""
    match study.settings.published:
        case "thesis-observe":
            return _observed(study, out)
        case "thesis-apply":
            if not any(one.outcome is RunOutcome.FINISHED for one in results):
                return Section()
            tables = [table for table in applied_tables(study, results) if table.rows]
            return Section(said=applied_notes(study, results), tables=tables)
        case _:
            return Section()


def _observed(study: Study, out: Path) -> Section:
    """Of the first run; the others are in the tables of any study."""
    run = study.runs[0]
    history, estimates = RunHistory.load(out / run.path), Estimates.load(out / run.path)
    if estimates is None:
        return Section()
    return Section(
        said=observed_notes(run, history),
        pictures=list(observed_figures(run, history, estimates)),
        tables=[table for table in observed_tables(run, history, estimates) if table.rows],
    )
