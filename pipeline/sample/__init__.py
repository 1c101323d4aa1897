"""Criteo-shaped logs of any length, drawn from a known logistic model, so that the best possible loss is known."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.sample.config import SampleConfig

if TYPE_CHECKING:
    from pipeline.sample.writer import SAMPLE_FILE, SampleSummary, write_sample

__all__ = ["SAMPLE_FILE", "SampleConfig", "SampleSummary", "write_sample"]

_FILES = dict.fromkeys(("SAMPLE_FILE", "SampleSummary", "write_sample"), "writer")


def __getattr__(name: str) -> Any:
    """What needs numpy and pyarrow, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
