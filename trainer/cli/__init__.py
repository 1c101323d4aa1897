"""The command line: `alphastream VERB`."""

from __future__ import annotations

from trainer.cli.entry import main

__all__ = ["main"]
