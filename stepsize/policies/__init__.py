"""Estimates → a learning rate; and published rules to compare with.

>>> from stepsize.policies import StepSizeConfig, make_policy
>>> policy = make_policy(StepSizeConfig(policy="auto"), initial_rate=1e-3, total_steps=None)
>>> policy.wants(0), policy.learning_rate(0, scheduled=1e-3)  # the first steps are trials, too short to harm
(True, 1e-06)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepsize.policies.choice import Policy, StepSizeConfig, make_policy
from stepsize.policies.horizon import FIRST_SERIES, NO_HORIZON, HorizonPlan
from stepsize.policies.rates import set_learning_rate

if TYPE_CHECKING:
    from stepsize.policies.baselines import L4, PAL, SGDBB, SPS

__all__ = [
    "FIRST_SERIES",
    "L4",
    "NO_HORIZON",
    "PAL",
    "SGDBB",
    "SPS",
    "HorizonPlan",
    "Policy",
    "StepSizeConfig",
    "make_policy",
    "set_learning_rate",
]


def __getattr__(name: str) -> Any:
    """The rules to compare with need torch; choosing a policy does not, so they are imported when asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stepsize.policies import baselines

    return getattr(baselines, name)
