"""The α_K at which a rate is right."""

from __future__ import annotations

import math

SHORT = 4
"""Steps up to which a horizon is a short one, whose sum should land at the minimum along it."""


def target_of(done: int, since: int) -> float:
    """½ + max(¼·ln(t / (t − K)), ½·min(1, 4/K)), at most 1, of a horizon from step `since` = t − K to `done` = t.

    Derived in stepsize/HORIZON.md.
    """
    gained = math.log(done / since) / 4 if since > 0 else math.inf
    return min(1.0, 0.5 + max(gained, 0.5 * min(1.0, SHORT / (done - since))))
