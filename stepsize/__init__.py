"""The curvature-based step size α* = −dᵀg / dᵀGd for any PyTorch training loop."""

from __future__ import annotations

from stepsize.errors import MeasurementError
from stepsize.estimate import Diagnostics, Estimate, Outcome, StepSizeNumbers
from stepsize.losses import AutogradLoss, BCEWithLogits, CrossEntropy, Loss, SquaredError
from stepsize.policies import L4, PAL, SGDBB, SPS, Policy, StepSizeConfig, make_policy, set_learning_rate
from stepsize.pooling import PooledRate, RatioSums, Window, median_rate, per_rate, pool
from stepsize.worker import StepSizeWorker

__all__ = [
    "L4",
    "PAL",
    "SGDBB",
    "SPS",
    "AutogradLoss",
    "BCEWithLogits",
    "CrossEntropy",
    "Diagnostics",
    "Estimate",
    "Loss",
    "MeasurementError",
    "Outcome",
    "Policy",
    "PooledRate",
    "RatioSums",
    "SquaredError",
    "StepSizeConfig",
    "StepSizeNumbers",
    "StepSizeWorker",
    "Window",
    "make_policy",
    "median_rate",
    "per_rate",
    "pool",
    "set_learning_rate",
]
