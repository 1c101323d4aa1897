"""Keeps forward mode true to what a backward pass would see, and gives it what torch has no formula for.

with TrueToReverse(live):
    logits = model(*inputs)
"""

from __future__ import annotations

from stepsize.measuring.forward_mode.recurrent import RECURRENT, weights_left_in_place, without_fused_kernels
from stepsize.measuring.forward_mode.true_to_reverse import TrueToReverse

__all__ = ["RECURRENT", "TrueToReverse", "weights_left_in_place", "without_fused_kernels"]
