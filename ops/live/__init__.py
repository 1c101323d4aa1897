"""What the live page shows: the state of a run in bounded memory, as plain JSON values, and the page itself."""

from ops.live.alpha import BIN_ESTIMATES, BINS, LEAST_ESTIMATES, AlphaFactor, alpha_bins, measuring_gaps
from ops.live.curve import POINTS, Curve
from ops.live.status import ALPHAS, MESSAGES, LiveStatus

__all__ = [
    "ALPHAS",
    "BINS",
    "BIN_ESTIMATES",
    "LEAST_ESTIMATES",
    "MESSAGES",
    "POINTS",
    "AlphaFactor",
    "Curve",
    "LiveStatus",
    "alpha_bins",
    "measuring_gaps",
]
