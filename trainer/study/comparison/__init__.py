"""What the runs of a study are compared within, and what their losses go with."""

from __future__ import annotations

from trainer.study.comparison.budgets import Budget, budgets_of
from trainer.study.comparison.correlations import Correlation, correlations, pearson

__all__ = ["Budget", "Correlation", "budgets_of", "correlations", "pearson"]
