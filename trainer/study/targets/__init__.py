"""How soon a study's runs reach given losses, which is AlgoPerf's question: the settings, and what is found and said.

reached = TargetPages.of(study, out, results, colors=arm_colors(study))  # of pages.py, which needs matplotlib
tables, figures, said = reached.tables(), reached.figures(), reached.sentences()
"""

from __future__ import annotations

from trainer.study.targets.config import PublishedConfig, TargetsConfig

__all__ = ["PublishedConfig", "TargetsConfig"]
