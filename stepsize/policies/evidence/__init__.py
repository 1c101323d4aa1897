"""What estimates amount to: a first rate found, a drifting one followed, few rows put together, repeats noticed."""

from __future__ import annotations

from stepsize.policies.evidence.few_rows import ENOUGH_ROWS, FewRows, steps_a_block
from stepsize.policies.evidence.rate_filter import RateFilter
from stepsize.policies.evidence.repeats import Repeats
from stepsize.policies.evidence.trial_steps import FirstRate, TrialSteps

__all__ = ["ENOUGH_ROWS", "FewRows", "FirstRate", "RateFilter", "Repeats", "TrialSteps", "steps_a_block"]
