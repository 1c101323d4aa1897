"""Slope and curvature along the optimizer's step, from one forward-mode pass over B1."""

from __future__ import annotations

from stepsize.measuring.curvature import moments, row_forms, secant_rounding
from stepsize.measuring.direction import Batch, Snapshot, Tables, Tracker
from stepsize.measuring.handoff import Pending, Quantities, lane_for
from stepsize.measuring.measurement import dropped, estimate_from, measure
from stepsize.measuring.passes import ForwardContext, Generators, LastTrainingForward, refuse_scripted, run, unwrapped

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
    "lane_for",
    "measure",
    "moments",
    "refuse_scripted",
    "row_forms",
    "run",
    "secant_rounding",
    "unwrapped",
]
