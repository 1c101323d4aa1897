"""The verb `study`: grids of runs from a file, and studies that are programs of their own."""

from __future__ import annotations

from trainer.cli.studies.verb import study_verb

__all__ = ["study_verb"]
