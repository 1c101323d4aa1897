"""What a run leaves on disk: its records line by line, read back as histories, and its checkpoints.

For example:

    history = RunHistory.load(Path("RUN"))
    print(history.steps["loss"][-1], history.evaluations["validation"]["auc"])
    checkpoint = load_latest("RUN")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.records.config import CheckpointConfig, RecordsConfig

if TYPE_CHECKING:
    from trainer.records.best import best_evaluation
    from trainer.records.checkpoint import (
        Checkpoint,
        checkpoint_steps,
        checkpoint_up_to,
        load_best,
        load_latest,
        load_latest_on_ranks,
        lost_random_state,
        make_room,
        make_room_on_ranks,
        random_state,
        read_checkpoint,
        restore_random_state,
        save_checkpoint,
        seed_generators,
        stored_value,
        verify_checkpoints,
        write_checkpoint,
    )
    from trainer.records.content import CheckpointFile, checkpoint_files
    from trainer.records.history import EVALUATION_FIELDS, Column, RunHistory, lowest_loss
    from trainer.records.host_memory import HostMemory, all_finite
    from trainer.records.kept import folder_bytes, held_bytes
    from trainer.records.line_of_history import delete_set_aside, set_aside
    from trainer.records.lines import Extent, thinning
    from trainer.records.records import Records, read_records, starts_of
    from trainer.records.sharded import RankFailedError, RanksDriftedError, RowRange, SaveGroup, Shares

__all__ = [
    "EVALUATION_FIELDS",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointFile",
    "Column",
    "Extent",
    "HostMemory",
    "RankFailedError",
    "RanksDriftedError",
    "Records",
    "RecordsConfig",
    "RowRange",
    "RunHistory",
    "SaveGroup",
    "Shares",
    "all_finite",
    "best_evaluation",
    "checkpoint_files",
    "checkpoint_steps",
    "checkpoint_up_to",
    "delete_set_aside",
    "folder_bytes",
    "held_bytes",
    "load_best",
    "load_latest",
    "load_latest_on_ranks",
    "lost_random_state",
    "lowest_loss",
    "make_room",
    "make_room_on_ranks",
    "random_state",
    "read_checkpoint",
    "read_records",
    "restore_random_state",
    "save_checkpoint",
    "seed_generators",
    "set_aside",
    "starts_of",
    "stored_value",
    "thinning",
    "verify_checkpoints",
    "write_checkpoint",
]

_FILES = {
    "EVALUATION_FIELDS": "history",
    "Checkpoint": "checkpoint",
    "CheckpointFile": "content",
    "Column": "history",
    "Extent": "lines",
    "thinning": "lines",
    "HostMemory": "host_memory",
    "Records": "records",
    "RunHistory": "history",
    "checkpoint_files": "content",
    "best_evaluation": "best",
    "checkpoint_steps": "checkpoint",
    "checkpoint_up_to": "checkpoint",
    "load_best": "checkpoint",
    "delete_set_aside": "line_of_history",
    "all_finite": "host_memory",
    "folder_bytes": "kept",
    "held_bytes": "kept",
    "load_latest": "checkpoint",
    "lost_random_state": "checkpoint",
    "lowest_loss": "history",
    "make_room": "checkpoint",
    "random_state": "checkpoint",
    "read_records": "records",
    "restore_random_state": "checkpoint",
    "save_checkpoint": "checkpoint",
    "seed_generators": "checkpoint",
    "set_aside": "line_of_history",
    "starts_of": "records",
    "stored_value": "checkpoint",
    "verify_checkpoints": "checkpoint",
    "write_checkpoint": "checkpoint",
    "load_latest_on_ranks": "checkpoint",
    "make_room_on_ranks": "checkpoint",
    "read_checkpoint": "checkpoint",
    "RankFailedError": "sharded",
    "RanksDriftedError": "sharded",
    "RowRange": "sharded",
    "SaveGroup": "sharded",
    "Shares": "sharded",
}


def __getattr__(name: str) -> Any:
    """What needs numpy or torch, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
