"""Estimates → a learning rate; and published rules to compare with."""

from __future__ import annotations

from stepsize.policies.baselines import L4, PAL, SGDBB, SPS
from stepsize.policies.choice import Policy, Precision, StepSizeConfig, make_policy
from stepsize.policies.rates import set_learning_rate

__all__ = [
    "L4",
    "PAL",
    "SGDBB",
    "SPS",
    "Policy",
    "Precision",
    "StepSizeConfig",
    "make_policy",
    "set_learning_rate",
]
