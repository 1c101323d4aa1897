"""The former name of `stepsize.policies`, for scripts that import it."""

from __future__ import annotations

from stepsize.policies import Policy, StepSizeConfig, make_policy, set_learning_rate

__all__ = ["Policy", "StepSizeConfig", "make_policy", "set_learning_rate"]
