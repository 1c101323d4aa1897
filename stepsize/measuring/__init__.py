"""Slope and curvature along the optimizer's step, from one forward-mode pass over B1."""

from __future__ import annotations

from stepsize.measuring.comparison import operator_class
from stepsize.measuring.curvature import secant_summary
from stepsize.measuring.direction import Batch, Snapshot, Tables, Tracker
from stepsize.measuring.handoff import Inline, Lane, Pending, Quantities, lane_for
from stepsize.measuring.kept import Generators
from stepsize.measuring.measurement import dropped, estimate_from, measure
from stepsize.measuring.optimizers import Steps, optimizers_of, refuse_evaluating
from stepsize.measuring.passes import (
    ForwardContext,
    LastTrainingForward,
    coarsest_eps,
    in_precision,
    plain_logits,
    refuse_scripted,
    refuse_sharded,
    refuse_without_parameters,
    unwrapped,
)
from stepsize.measuring.self_check import SelfCheck
from stepsize.measuring.shares import Gather, merged_shares, secant_share
from stepsize.measuring.tables import LookUpAcross, RowsAcross, StandIn, refuse_max_norm

__all__ = [
    "Batch",
    "ForwardContext",
    "Gather",
    "Generators",
    "Inline",
    "Lane",
    "LastTrainingForward",
    "LookUpAcross",
    "Pending",
    "Quantities",
    "RowsAcross",
    "SelfCheck",
    "Snapshot",
    "StandIn",
    "Steps",
    "Tables",
    "Tracker",
    "coarsest_eps",
    "dropped",
    "estimate_from",
    "in_precision",
    "lane_for",
    "measure",
    "merged_shares",
    "operator_class",
    "optimizers_of",
    "plain_logits",
    "refuse_evaluating",
    "refuse_max_norm",
    "refuse_scripted",
    "refuse_sharded",
    "refuse_without_parameters",
    "secant_share",
    "secant_summary",
    "unwrapped",
]
