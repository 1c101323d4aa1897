"""What of the cost of α* is measured; without torch, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """The model, the batch and how often all ways take their turn."""

    preset: str = "dlrm-small"
    """Model: dlrm-small is AlgoPerf's and the published one, but for its table."""
    table_rows: int = 50_000
    """Rows of the embedding table (published: 4,194,304). curvlinops and the original's way hold the model some ten
    times over in memory."""
    batch_rows: int = 2048
    """Rows of a batch (published: 32,768)."""
    rounds: int = 5
    """Rounds in which all ways take their turn; figures are medians over them."""
    threads: int | None = None
    """Threads of the processor; by default those that torch takes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes a graphics card if there is one."""

    def __post_init__(self) -> None:
        for name in ("table_rows", "batch_rows", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give at least 1")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads is {self.threads}; give at least 1")
