"""The `study` command: a grid of runs from one file, its tables and figures."""

from __future__ import annotations

from trainer.study.command import run_study
from trainer.study.definition import read_study
from trainer.study.report import is_study, write_study_report

__all__ = [
    "is_study",
    "read_study",
    "run_study",
    "write_study_report",
]
