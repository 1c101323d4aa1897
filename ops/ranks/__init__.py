"""Several processes that train one run: where the time of each goes, and which of them the others wait for."""

from ops.ranks.exported import RankMetrics
from ops.ranks.times import RankTimes

__all__ = ["RankMetrics", "RankTimes"]
