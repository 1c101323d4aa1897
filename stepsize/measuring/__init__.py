"""Slope and curvature along the optimizer's step, from one forward-mode pass over B1."""

from __future__ import annotations

from stepsize.measuring.curvature import row_forms, secant_rounding, summarize
from stepsize.measuring.direction import Batch, Snapshot, Tables, Tracker
from stepsize.measuring.handoff import Pending, Quantities, lane_for
from stepsize.measuring.measurement import dropped, estimate_from, measure
from stepsize.measuring.passes import (
    ForwardContext,
    Generators,
    LastTrainingForward,
    forward_pass,
    refuse_scripted,
    unwrapped,
)

__all__ = [
    "Batch",
    "ForwardContext",
    "Generators",
    "LastTrainingForward",
    "Pending",
    "Quantities",
    "Snapshot",
    "Tables",
    "Tracker",
    "dropped",
    "estimate_from",
    "forward_pass",
    "lane_for",
    "measure",
    "refuse_scripted",
    "row_forms",
    "secant_rounding",
    "summarize",
    "unwrapped",
]
