"""A run on several ranks: what they agree on, what is refused, and the ranks that only work."""

from trainer.job.ranks.agreement import Agreement
from trainer.job.ranks.checkpoints import WantedRows, shares_of
from trainer.job.ranks.refused import refuse_on_ranks, timeout_warning
from trainer.job.ranks.reporter import RankReporter, communication_timed
from trainer.job.ranks.silent import SilentDirectory, silenced

__all__ = [
    "Agreement",
    "RankReporter",
    "SilentDirectory",
    "WantedRows",
    "communication_timed",
    "refuse_on_ranks",
    "shares_of",
    "silenced",
    "timeout_warning",
]
