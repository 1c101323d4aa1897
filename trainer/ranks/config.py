"""The [ranks] section of a configuration; importing it costs nothing."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RanksConfig:
    """What several processes that train one run wait for."""

    timeout_seconds: float = 300.0
    """So long a rank waits for another at a step before it gives the run up (exit code 74): longer than the slowest
    read, evaluation batch and compilation of any."""
    save_timeout_seconds: float = 1800.0
    """The same where a checkpoint is written or verified."""

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "save_timeout_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"ranks.{name} is {getattr(self, name)}; give a number of seconds above 0")


def ranks_asked() -> int:
    """How many processes torchrun, or whoever sets WORLD_SIZE, has started together with this one; 1: it is alone.

    Raises: InputError if that says no number.
    """
    said = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not said.isdecimal() or int(said) < 1:
        raise InputError(f"WORLD_SIZE is {said!r}; unset it, or set it to the number of ranks")
    return int(said)
