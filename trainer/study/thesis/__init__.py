"""The published study beside its rerun: its tables, its pictures, and its list with what is here of it.

For example:

    section = thesis_section(study, list(collect(study, out).values()), out)  # of a study with study.published
    section.said, section.pictures, section.tables
"""

from __future__ import annotations

from trainer.study.thesis.alpha import Estimates, burst_figure, statistics
from trainer.study.thesis.section import Section, thesis_section

__all__ = ["Estimates", "Section", "burst_figure", "statistics", "thesis_section"]
