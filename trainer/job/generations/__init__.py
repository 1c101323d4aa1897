"""Data that grows: which generations a run is of, and waiting for the next."""

from __future__ import annotations

from trainer.job.generations.identity import data_identity, pinned, refuse_other_rows, say_what_is_left_out, seen_by
from trainer.job.generations.waiting import LogWait

__all__ = ["LogWait", "data_identity", "pinned", "refuse_other_rows", "say_what_is_left_out", "seen_by"]
