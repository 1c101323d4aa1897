"""Estimates that have not been handed over as JSON values, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from stepsize.estimate import Diagnostics, Estimate, Outcome, StepSizeNumbers
from stepsize.worker.measurement_queue import Finished


def stored(undelivered: Iterable[Finished]) -> list[dict[str, Any]]:
    """Each as its due step and its estimate's fields."""
    return [
        {"due": one.due, "estimate": {**asdict(one.estimate), "outcome": one.estimate.outcome.value}}
        for one in undelivered
    ]


def restored(values: Iterable[Mapping[str, Any]]) -> list[Finished]:
    """What `stored` made these values of."""
    return [Finished(due=one["due"], estimate=_estimate(one["estimate"])) for one in values]


def _estimate(values: Mapping[str, Any]) -> Estimate:
    groups, diagnostics = values["groups"], values["diagnostics"]
    return Estimate(
        **{
            **values,
            "outcome": Outcome(values["outcome"]),
            "biased": _numbers(values["biased"]),
            "hybrid": _numbers(values["hybrid"]),
            "groups": None if groups is None else tuple(StepSizeNumbers(**group) for group in groups),
            "diagnostics": None if diagnostics is None else Diagnostics(**diagnostics),
        }
    )


def _numbers(values: Mapping[str, Any] | None) -> StepSizeNumbers | None:
    return None if values is None else StepSizeNumbers(**values)


def aged(estimate: Estimate, step: int | None, *, max_age: int | None) -> Estimate:
    """`estimate` as it is handed over at `step`: with its age, STALE beyond `max_age`."""
    age = 0 if step is None else step - estimate.step
    stale = max_age is not None and age > max_age and estimate.outcome is not Outcome.DROPPED
    return replace(estimate, age=age, outcome=Outcome.STALE if stale else estimate.outcome)
