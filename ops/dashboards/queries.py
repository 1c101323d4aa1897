"""PromQL of the dashboards: our series for the runs chosen at the top, each with the name of its run.

A run's name is on `run_info` alone, so every query joins it; a process's own labels, job and instance, stay beside it,
so that two runs of one name on two machines are never added up.
"""

from __future__ import annotations

from ops.series import PREFIX

OVERVIEW, BOTTLENECK, STEP_SIZE = PREFIX, f"{PREFIX}-bottleneck", f"{PREFIX}-step-size"
"""Addresses of the boards in Grafana, /d/ADDRESS."""

SELECTED = 'job=~"$job", instance=~"$instance"'
EACH = "(job, instance, run)"
"""What one run is told from another by."""
LEGEND = "{{run}}"


def selector(name: str, labels: str = "") -> str:
    """One of our series for the chosen processes, without the run's name."""
    return f"{PREFIX}_{name}{{{SELECTED}{labels and ', ' + labels}}}"


def named(expression: str) -> str:
    """`expression`, of the chosen runs, with the label `run`."""
    info = f'{PREFIX}_run_info{{{SELECTED}, run=~"$run"}}'
    return f"({expression}) * on (job, instance) group_left (run) {info}"


def metric(name: str, labels: str = "") -> str:
    """A gauge, or a counter's own value."""
    return named(selector(name, labels))


def known(name: str, labels: str = "") -> str:
    """A gauge that is never negative, where it is known: without NaN, whose legend would stand for no curve."""
    return named(f"{selector(name, labels)} >= 0")


def rate(name: str, labels: str = "", *, window: str = "$__rate_interval") -> str:
    """The rate of a counter per second."""
    return named(f"rate({selector(name, labels)}[{window}])")


def per_run(expression: str, *, by: str = "") -> str:
    """The sum of a named expression over everything but the run, and the label `by`."""
    labels = EACH if not by else f"({by}, {EACH[1:]}"
    return f"sum by {labels} ({expression})"


def quantile(share: float, name: str, *, window: str) -> str:
    """A quantile of a histogram, of each run by itself: quantiles of several cannot be averaged."""
    return f"histogram_quantile({share}, {per_run(rate(f'{name}_bucket', window=window), by='le')})"
