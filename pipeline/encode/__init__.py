"""Lines → columns in one compiled pass, bit for bit AlgoPerf's encoding; and what is counted on the way."""

from __future__ import annotations

from pipeline.encode.rejected import rejected_lines
from pipeline.encode.statistics import Counts, collision_rate, distinct_estimate, merged, summarize_counts
from pipeline.encode.tsv import keep_negatives, make_group, make_layout, make_rejects, make_scratch, parse

__all__ = [
    "Counts",
    "collision_rate",
    "distinct_estimate",
    "keep_negatives",
    "make_group",
    "make_layout",
    "make_rejects",
    "make_scratch",
    "merged",
    "parse",
    "rejected_lines",
    "summarize_counts",
]
