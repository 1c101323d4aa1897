"""The `study` command: a grid of runs from one file, its tables and figures.

study = read_study("my.toml").unfold()
end = run_study(study, Path("DIR"), console=Console())
page = write_study_report(Path("DIR"))
"""

from __future__ import annotations

from trainer.study.definition import read_study
from trainer.study.report import is_study, write_study_report
from trainer.study.runner import run_study

__all__ = [
    "is_study",
    "read_study",
    "run_study",
    "write_study_report",
]
