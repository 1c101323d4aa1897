"""The `study` command: a grid of runs from one file, its tables and figures.

For example:

    study = read_study("my.toml").unfold()
    end = run_study(study, Path("DIR"), console=Console())
    page = write_study_report(Path("DIR"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.study.cost import CostConfig
from trainer.study.definition import StudyFile, is_study, read_study
from trainer.study.scaling import ScaledSetting, scale_of

if TYPE_CHECKING:
    from trainer.study.cost.table import cost_study
    from trainer.study.report import write_study_report
    from trainer.study.runner import run_study
    from trainer.study.sanity import landings

__all__ = [
    "CostConfig",
    "ScaledSetting",
    "StudyFile",
    "cost_study",
    "is_study",
    "landings",
    "read_study",
    "run_study",
    "scale_of",
    "write_study_report",
]

_FILES = {
    "cost_study": "cost.table",
    "landings": "sanity",
    "rates_study": "rates",
    "run_study": "runner",
    "write_study_report": "report",
}


def __getattr__(name: str) -> Any:
    """What needs torch or matplotlib, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
