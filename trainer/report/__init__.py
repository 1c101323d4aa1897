"""A run's report: its figures, its tables and the page that shows them.

For example:

    page = write_report(Path("runs/one"))  # runs/one/report/index.html
"""

from __future__ import annotations

from trainer.report.plotting import (
    AMBER,
    BLUE,
    BROWN,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SKY,
    VIOLET,
    legend,
    new_figure,
    step_axis,
    style,
)
from trainer.report.report import duration, page_text, write_figure, write_page, write_report, write_table
from trainer.report.summary import best_of_split, bin_means, evaluation_at
from trainer.report.tables import Table

__all__ = [
    "AMBER",
    "BLUE",
    "BROWN",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PINK",
    "SKY",
    "VIOLET",
    "Table",
    "best_of_split",
    "bin_means",
    "duration",
    "evaluation_at",
    "legend",
    "new_figure",
    "page_text",
    "step_axis",
    "style",
    "write_figure",
    "write_page",
    "write_report",
    "write_table",
]
