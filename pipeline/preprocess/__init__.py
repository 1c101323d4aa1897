"""The `preprocess` command: a plan, its parts, who encodes them (threads or Ray), and the manifest at the end."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.preprocess.config import PreprocessConfig

if TYPE_CHECKING:
    from pipeline.preprocess.command import Progress, Summary, preprocess
    from pipeline.preprocess.dry_run import Forecast, forecast
    from pipeline.preprocess.plan import Plan

__all__ = [
    "Forecast",
    "Plan",
    "PreprocessConfig",
    "Progress",
    "Summary",
    "forecast",
    "preprocess",
]

_FILES = {
    "Forecast": "dry_run",
    "Plan": "plan",
    "Progress": "command",
    "Summary": "command",
    "forecast": "dry_run",
    "preprocess": "command",
}


def __getattr__(name: str) -> Any:
    """What needs compiled code, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
