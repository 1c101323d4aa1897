"""The `preprocess` command: a plan, its parts, who encodes them (threads or Ray), and the manifest at the end."""

from __future__ import annotations

from pipeline.preprocess.command import PreprocessConfig, Progress, Summary, preprocess
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
