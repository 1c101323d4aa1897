"""RUN/*.jsonl as columns: what a run wrote down, read whole however it ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.ranks import RankTimes
from trainer.records.columns import Column, read_estimates, read_steps
from trainer.records.records import read_records

HORIZON_FIELDS = ("step", "horizon", "relative", "standard_error", "slope", "curvature")
EVALUATION_FIELDS = ("step", "loss", "auc", "normalized_entropy", "calibration", "rows", "seconds", "training_seconds")
ENDS = {
    "budget": "the budget is reached",
    "target": "the target is reached",
    "idle": "no new rows came",
    "diverged": "training diverged",
    "interrupted": "stopped by a signal; resumable",
    "hung": "stopped because it hung; resumable",
}
"""Reasons of the event `stop`, in the words of `trainer.loop.Stop`."""


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """What a run recorded, each table as columns of equal length, NaN for a line without that number."""

    path: Path
    steps: Mapping[str, Column]
    """`STEP_FIELDS`, ascending in `step`, one row a step; or one for several, of a run so long that older ones are
    merged (`trainer.records.lines`): `rows` and `seconds` are their sums, losses and rates their means."""
    phases: Mapping[str, Column]
    """Seconds of each phase of those steps; a phase that never ran is left out."""
    spread: Mapping[str, tuple[Column, Column]]
    """What merged rows keep of the single steps' `seconds` and `learning_rate`: values to 1 %, and how many steps had
    each; with the rows of single steps they are `values`."""
    alpha: Mapping[str, Column]
    """`ALPHA_FIELDS`, ascending in `step`, with `biased` and `hybrid` as the `relative` of those estimators. A row may
    stand for several estimates (`estimates`), of which it is the first; `measured`, `negative`, and the sums `pairs`
    and `per_rate`, one row each, as `merge_estimates` has them, are of all."""
    horizon: Mapping[str, Column]
    """`HORIZON_FIELDS` of the measurements of many steps as a whole, in their order."""
    outcomes: Mapping[str, int]
    """What came of the estimates, and of how many."""
    pauses: Mapping[str, float]
    """Seconds by phase between the steps, in evaluations and checkpoints; of versions that recorded no pauses, what
    the evaluations took."""
    evaluations: Mapping[str, Mapping[str, Column]]
    """`EVALUATION_FIELDS` of each split that was evaluated, ascending in `step`."""
    messages: tuple[tuple[int | None, str], ...]
    """Sentences of the event log with the step they belong to, oldest first."""
    ranks: RankTimes | None
    """Where the time of every rank went, over what the event log has of it: less the first step of each process, and
    since their number last changed. None of a run on one rank."""
    sent_bytes: Mapping[str, float]
    """What all ranks together sent to one another over the same stretch, by what it was for."""
    diverged: bool
    """The run ended because its loss or weights were no longer finite, by its event log or else its last loss."""
    damaged_lines: int
    """Lines that are not JSON objects; a process that was killed leaves at most one a file."""

    @classmethod
    def load(cls, run: Path) -> RunHistory:
        """Reads the files that are there; a run in progress gives what is written so far."""
        damaged: list[int] = []
        steps = read_steps(run / "steps.jsonl", damaged=damaged.append)
        alpha = read_estimates(run / "alpha.jsonl", damaged=damaged.append)
        horizon = list(read_records(run / "horizon.jsonl", damaged=damaged.append))
        ranks, sent_bytes = _read_ranks(_events(run))
        evaluations = read_evaluations(read_records(run / "evals.jsonl", damaged=damaged.append))
        return cls(
            path=run,
            steps=steps.columns,
            phases=steps.phases,
            spread=steps.spread,
            alpha=alpha.columns,
            horizon={name: _column(horizon, name) for name in HORIZON_FIELDS},
            outcomes=alpha.outcomes,
            pauses=_read_pauses(_events(run), evaluations),
            evaluations=evaluations,
            messages=tuple(_messages(read_records(run / "events.jsonl", damaged=damaged.append))),
            ranks=ranks,
            sent_bytes=sent_bytes,
            diverged=_diverged(_events(run), steps.columns["loss"]),
            damaged_lines=len(damaged),
        )

    @cached_property
    def phase_totals(self) -> dict[str, float]:
        """Seconds of every phase over the run's steps and the pauses between them, longest first."""
        totals = {name: float(np.nansum(seconds)) for name, seconds in self.phases.items()}
        for name, seconds in self.pauses.items():
            totals[name] = totals.get(name, 0.0) + seconds
        return {name: seconds for name, seconds in sorted(totals.items(), key=lambda item: -item[1]) if seconds > 0}

    @property
    def step_count(self) -> int:
        """How many steps are recorded."""
        return int(self.steps["steps"].sum())

    @property
    def thinned(self) -> bool:
        """Whether rows stand for several steps or estimates."""
        return self.step_count > len(self.steps["step"]) or bool((self.alpha["estimates"] > 1).any())

    @property
    def middle(self) -> Column:
        """The middle step of each row of `steps`."""
        return (self.steps["step"] + self.steps["last_step"]) / 2

    def values(self, name: str) -> tuple[Column, Column]:
        """`seconds` or `learning_rate` of single steps, finite, and how many steps had each value."""
        alone = (self.steps["steps"] == 1) & np.isfinite(self.steps[name])
        values, counts = self.spread[name]
        return np.concatenate([self.steps[name][alone], values]), np.concatenate([np.ones(int(alone.sum())), counts])

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Which rows of `alpha` carry a finite α*."""
        return np.isfinite(self.alpha["relative"])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def lowest_loss(table: Mapping[str, Column]) -> int | None:
    """Which row of a split's evaluations has the lowest loss, the first of equals; None without a finite one."""
    loss = np.where(np.isfinite(table["loss"]), table["loss"], np.inf)
    return int(np.argmin(loss)) if np.isfinite(loss).any() else None


def read_evaluations(records: Iterator[dict[str, Any]]) -> dict[str, dict[str, Column]]:
    latest: dict[str, dict[float, dict[str, Any]]] = {}
    for record in records:
        latest.setdefault(str(record.get("split", "unknown")), {})[_number(record.get("step"))] = record
    return {
        split: {name: _column([by_step[step] for step in sorted(by_step)], name) for name in EVALUATION_FIELDS}
        for split, by_step in latest.items()
    }


def _read_pauses(events: Iterator[dict[str, Any]], evaluations: Mapping[str, Mapping[str, Column]]) -> dict[str, float]:
    kept, first = _kept(events, "pause")
    earlier = sum(float(np.nansum(table["seconds"][table["step"] < first])) for table in evaluations.values())
    totals = {"evaluation": earlier}
    for pause in kept:
        for name, seconds in (pause.get("phases") or {}).items():
            totals[name] = totals.get(name, 0.0) + float(np.nan_to_num(_number(seconds)))
    return {name: seconds for name, seconds in totals.items() if seconds > 0}


def _kept(events: Iterator[dict[str, Any]], event: str) -> tuple[list[dict[str, Any]], float]:
    """Events of the steps that count: what came after a checkpoint is taken back by going on from it. And the first
    step that there was one at.
    """
    kept: list[dict[str, Any]] = []
    first = math.inf
    for record in events:
        step = _number(record.get("step"))
        match record.get("event"):
            case "start":
                kept.clear()
            case "resume":
                kept = [one for one in kept if _number(one.get("step")) <= step]
            case "rollback":
                kept = [one for one in kept if _number(one.get("step")) <= _number(record.get("to"))]
            case name if name == event:
                kept.append(record)
                first = min(first, step)
    return kept, first


def _read_ranks(events: Iterator[dict[str, Any]]) -> tuple[RankTimes | None, dict[str, float]]:
    times: RankTimes | None = None
    sent: dict[str, float] = {}
    for record in _kept(events, "ranks")[0]:
        lists = {name: spent for name, spent in (record.get("phases") or {}).items() if isinstance(spent, list)}
        if len({len(spent) for spent in lists.values()}) != 1:
            continue  # not written by this program
        phases = {name: [_number(one) for one in spent] for name, spent in lists.items()}
        steps = _number(record.get("steps"))
        stretch = RankTimes(steps=0 if math.isnan(steps) else int(steps), seconds=phases)
        if times is None or stretch.ranks != times.ranks:
            times, sent = stretch, {}
        else:
            times += stretch
        for name, size in (record.get("sent_bytes") or {}).items():
            sent[name] = sent.get(name, 0.0) + _number(size)
    return times, sent


def _events(run: Path) -> Iterator[dict[str, Any]]:
    return read_records(run / "events.jsonl", damaged=lambda _: None)


def _column(records: list[dict[str, Any]], name: str) -> Column:
    return np.array([_number(record.get(name)) for record in records], dtype=np.float64)


def _diverged(events: Iterator[dict[str, Any]], loss: Column) -> bool:
    ends = [record.get("reason") for record in events if record.get("event") in ("start", "resume", "stop")]
    if ends and ends[-1] is not None:
        return ends[-1] == "diverged"
    # Still running, killed, or of a version that recorded no end: one step's loss may be unknown, no more than that.
    return len(loss) > 1 and not bool(np.isfinite(loss[-2:]).any())


def _messages(records: Iterator[dict[str, Any]]) -> Iterator[tuple[int | None, str]]:
    for record in records:
        if record.get("event") in ("pause", "ranks"):
            continue  # their time is in the figures
        step = record.get("step")
        yield (step if isinstance(step, int) else None), str(record.get("message") or _in_words(record))


def _in_words(record: Mapping[str, Any]) -> str:
    """An event without a message of its own; of an event that is not known, every value under its name."""
    match record:
        case {"event": "start"}:
            return "training began"
        case {"event": "resume", "checkpoint": name}:
            return f"continued from {name}"
        case {"event": "checkpoint", "checkpoint": name}:
            return f"saved {name}"
        case {"event": "stop", "reason": reason}:
            skipped = record.get("skipped_rows") or 0
            return ENDS.get(reason, f"stopped: {reason}") + (f" ({skipped:,} damaged rows left out)" if skipped else "")
    values = [f"{key} {value}" for key, value in record.items() if key not in ("time", "event", "step")]
    return ": ".join([str(record.get("event", "event")), *([", ".join(values)] if values else [])])
