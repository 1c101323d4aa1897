"""What is measured to be compared with α*, on request: other curvature matrices, and norms, cosines and losses."""

from __future__ import annotations

from stepsize.measuring.comparison.curvlinops_backend import operator_class, quadratic_form
from stepsize.measuring.comparison.diagnostics import diagnose, diagnostics_from

__all__ = ["diagnose", "diagnostics_from", "operator_class", "quadratic_form"]
