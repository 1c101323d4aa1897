"""What a study of rates found, as tables, figures and a page.

scores = score(tasks, methods, seeds, lookup)
write_report(folder, scores, skipped=skipped)
"""

from __future__ import annotations

from stepsize.suite.report.page import write_suite_report
from stepsize.suite.report.scores import Entry, Scores, score

__all__ = ["Entry", "Scores", "score", "write_suite_report"]
