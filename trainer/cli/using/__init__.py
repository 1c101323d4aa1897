"""The verbs on what was trained: export."""

from __future__ import annotations

from trainer.cli.using.exporting import export_verb

__all__ = ["export_verb"]
