"""What a run leaves on disk: its records line by line, read back as histories, and its checkpoints."""

from __future__ import annotations

from trainer.records.checkpoint import (
    Checkpoint,
    CheckpointConfig,
    load_latest,
    random_state,
    restore_random_state,
    save_checkpoint,
    seed_generators,
    verify_checkpoints,
)
from trainer.records.history import EVALUATION_FIELDS, Column, RunHistory
from trainer.records.records import Records, read_records

__all__ = [
    "EVALUATION_FIELDS",
    "Checkpoint",
    "CheckpointConfig",
    "Column",
    "Records",
    "RunHistory",
    "load_latest",
    "random_state",
    "read_records",
    "restore_random_state",
    "save_checkpoint",
    "seed_generators",
    "verify_checkpoints",
]
