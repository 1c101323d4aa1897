"""What of a policy's state is still true for a policy of other settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trainer.config import Config

SERIES = ("interval", "count", "start")
"""Settings that say which steps make a series of median_hold."""


def policy_settings(config: Config) -> dict[str, Any]:
    """What a policy's state depends on, as JSON values, kept with it in a checkpoint."""
    series = {name: getattr(config.stepsize, name) for name in SERIES}
    return {"policy": config.stepsize.policy, "lr": config.optimizer.lr, **series}


def rate_settings(config: Config) -> dict[str, Any]:
    """The settings that give a run its rate, as JSON values: where one changes, what rollbacks took is given back."""
    given = {"lr": config.optimizer.lr, "policy": config.stepsize.policy, "schedule": asdict(config.schedule)}
    return json.loads(json.dumps(given))


def carried_over(state: Mapping[str, Any], then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any] | None:
    """`state`, of a policy of the settings `then`, for one of the settings `now`; None if it has to begin anew.

    Another policy begins anew, and so does one whose run is given another rate: it would hold on to its own, and the
    new one would have no say. median_hold keeps its rate where its intervals change, and forgets the series under way,
    which is counted in the old ones. All others know no intervals.
    """
    if (then["policy"], then["lr"]) != (now["policy"], now["lr"]):
        return None
    if now["policy"] == "median_hold" and any(then[name] != now[name] for name in SERIES):
        return {**state, "series": 0, "rates": [], "counted": [], "failures": {}, "decided": False}
    return dict(state)
