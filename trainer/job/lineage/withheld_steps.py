"""What is told of steps that were withheld: which rows, from where, and why; many of them not one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.device import Feed

if TYPE_CHECKING:
    from trainer.job.observer import Outlets

TOLD = 10
"""So many are told one by one; then the 100th, the 1,000th, ... All are in steps.jsonl, and counted."""
NAMED_SHARDS = 4


class WithheldSteps:
    """Counts the withheld steps of this process by their cause, and tells of them."""

    def __init__(self, outlets: Outlets, feed: Feed) -> None:
        self._outlets, self._feed = outlets, feed
        self._count = 0

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Takes in a record of steps.jsonl."""
        withheld = record.get("withheld")
        if withheld is None:
            return
        self._count += 1
        self._outlets.metrics.nonfinite_step(withheld["cause"])
        if self._count > TOLD and str(self._count).strip("0") != "1":
            return
        epoch, start, rows = record["epoch"], record["start"], record["rows"]
        shards = self._feed.sources(epoch, start, start + rows)
        number = "" if self._count < TOLD else f" (the {self._count:,}th; not all are told from here on)"
        message = (
            f"step {record['step']:,} withheld{number}: {withheld['what']}; rows {start:,} to {start + rows - 1:,} of "
            f"epoch {epoch}, from {_named(shards)}"
        )
        self._outlets.directory.event(
            "withheld",
            step=record["step"],
            epoch=epoch,
            start=start,
            rows=rows,
            cause=withheld["cause"],
            what=withheld["what"],
            shards=shards,
            message=message,
        )
        self._outlets.live.message(record["step"], message)
        self._outlets.console.warn(message)


def _named(shards: Mapping[str, int]) -> str:
    largest = sorted(shards, key=lambda name: -shards[name])[:NAMED_SHARDS]
    more = len(shards) - len(largest)
    return ", ".join(f"{name} ({shards[name]:,})" for name in largest) + (f" and {more:,} more" if more else "")
