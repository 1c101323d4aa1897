"""The α_K at which a rate is right, by how many of a run's steps the horizon covers."""

from __future__ import annotations

import math


def target(since: int, done: int, c: float = 1.0, k0: float = 4.0) -> float:
    """target_K = ½ + max(¼·ln(t / (t − K)), ½·min(1, 4/K)), at most 1, with t = `done` and K = `done` − `since`."""
    gained = c * math.log(done / max(since, 0.5)) / 4
    return min(1.0, 0.5 + max(gained, 0.5 * min(1.0, k0 / (done - since))))
