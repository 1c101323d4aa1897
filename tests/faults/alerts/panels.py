"""The queries of all panels of the three boards, as Grafana would send them, and which of them have an answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ops.dashboards import generate
from tests.prometheus_server import Prometheus

VARIABLES = {"$__rate_interval": "3s", "$__range": "10m", "$job": ".*", "$run": ".*", "$instance": ".*"}

NO_GPU = "there is no GPU here"
FOLLOWED = "only of a log that is followed"
AUTO = "only of policy auto, which measures many steps at once"
ALONE = "one rank has no others"
EMPTY = {
    ("GPU memory free", "{{run}}"): NO_GPU,
    ("Memory", "{{run}} GPU, in tensors"): NO_GPU,
    ("Memory", "{{run}} GPU, reserved"): NO_GPU,
    ("Memory", "{{run}} GPU, all there is"): NO_GPU,
    ("Generations of the log", "{{run}} trained on"): FOLLOWED,
    ("Generations of the log", "{{run}} waiting after it"): FOLLOWED,
    ("Rows of the log", "{{run}} arrived"): FOLLOWED,
    ("Rows of the log", "{{run}} not trained on yet"): FOLLOWED,
    ("Progressive validation", "{{run}} loss"): FOLLOWED,
    ("Progressive validation", "{{run}} AUC"): FOLLOWED,
    ("Progressive validation", "{{run}} calibration"): FOLLOWED,
    ("α* of the latest steps as a whole", "{{run}}"): AUTO,
    ("α* of the latest steps as a whole", "{{run}} low"): AUTO,
    ("α* of the latest steps as a whole", "{{run}} high"): AUTO,
    ("Steps measured as a whole", "{{run}}"): AUTO,
    ("Bytes sent by purpose", "{{run}} {{purpose}}"): ALONE,
    ("Slowest rank", "{{run}}"): ALONE,
    ("What the slowest rank does for longer", "{{run}} {{phase}}"): ALONE,
    ("Phases over ranks, least and most", "{{run}} {{phase}}, least"): ALONE,
    ("Phases over ranks, least and most", "{{run}} {{phase}}, most"): ALONE,
    ("Why it ended", "{{instance}} {{reason}}"): "a run that trains has not ended",
}
"""Curves, by the title of their panel and their legend, that a run which trains leaves empty, and why."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One query of a panel."""

    panel: str
    legend: str
    expression: str

    @property
    def name(self) -> tuple[str, str]:
        return self.panel, self.legend

    def shows(self, prometheus: Prometheus, instance: str) -> bool:
        """Whether it has a number for the run at `instance` now."""
        return any(self._is_of(labels, instance) and math.isfinite(value) for labels, value in self.now(prometheus))

    def now(self, prometheus: Prometheus) -> list[tuple[dict[str, str], float]]:
        return prometheus.query(self.expression)

    def showed(self, prometheus: Prometheus, instance: str, since: float) -> bool:
        """Whether it has had a number for that run at any time since then."""
        series = prometheus.query_since(self.expression, since, step=1.0)
        return any(self._is_of(labels, instance) and any(map(math.isfinite, values)) for labels, values in series)

    @staticmethod
    def _is_of(labels: dict[str, str], instance: str) -> bool:
        """The heatmap adds all runs up and keeps no instance."""
        return labels.get("instance", instance) == instance


def curves() -> Iterator[Curve]:
    """Of all boards, with everything chosen at their top."""
    for board in generate.BOARDS:
        for panel in generate.build(board)["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"]
                for variable, text in VARIABLES.items():
                    expression = expression.replace(variable, text)
                assert "$" not in expression
                yield Curve(panel=panel["title"], legend=target["legendFormat"], expression=expression)
