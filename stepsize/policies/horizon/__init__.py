"""Many steps at once as a guide to the rate: when they are measured, what of one series comes, and what should."""

from __future__ import annotations

from stepsize.policies.horizon.plan import NO_HORIZON, HorizonPlan, SingleSteps
from stepsize.policies.horizon.series import HorizonSeries
from stepsize.policies.horizon.target import target_of
from stepsize.policies.horizon.unseen import UnseenGain
from stepsize.policies.horizon.windows import FIRST_SERIES, FIRST_SNAPSHOT, HorizonWindows

__all__ = [
    "FIRST_SERIES",
    "FIRST_SNAPSHOT",
    "NO_HORIZON",
    "HorizonPlan",
    "HorizonSeries",
    "HorizonWindows",
    "SingleSteps",
    "UnseenGain",
    "target_of",
]
