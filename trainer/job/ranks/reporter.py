"""Where the time of every rank goes: gathered now and then, told by rank 0."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from ops.ranks import RankTimes
from ops.series import SENT_FOR
from ops.step_clock import PHASES, StepClock
from trainer.job.observer import Outlets
from trainer.ranks import Ranks

GATHER_STEPS = 50
"""A gather is told from host to host, a few hundred bytes; as often, then, as records are flushed."""
PURPOSES = {"gradients of rows": "row_gradients", "rows for α*": "alpha_rows", "α*": "alpha"}
"""What `Ranks.sent_bytes` has under another name than a label can be."""
MICROSECONDS = 6
"""Decimals of seconds in the event log."""


@contextmanager
def communication_timed(ranks: Ranks, clock: StepClock) -> Iterator[None]:
    """Within it what this thread waits for other ranks is its clock's `communication`.

    Other threads, as autograd's on CUDA, leave the clock alone: what they do is part of the phase that waits for them.
    """
    loop = threading.get_ident()

    def timed() -> AbstractContextManager[None]:
        return clock.phase("communication") if threading.get_ident() == loop else nullcontext()

    if ranks.alone:
        yield
        return
    before, ranks.timed = ranks.timed, timed
    try:
        yield
    finally:
        ranks.timed = before


@dataclass(kw_only=True)
class RankReporter:
    """Gathers on all ranks at the same steps, and waits for no device; alone, it does nothing.

    A stretch begins behind the first step of this process, which waits for the pipeline to fill and for compilation.
    """

    ranks: Ranks
    outlets: Outlets
    _gathered: int = 0
    """How many steps there were at the latest gather; 0 before the first."""
    _before: list[list[float]] = field(default_factory=list)
    """What each rank had told by then."""
    _untold: RankTimes | None = None
    """Since the latest event."""
    _untold_bytes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sent_earlier = sent_by_purpose(self.ranks.sent_bytes)

    @property
    def _done(self) -> int:
        """Steps of this process whose time is known: on CUDA that comes some steps behind, on all ranks as many."""
        return self.outlets.clock.steps

    def between_steps(self) -> None:
        """Gathers if it is time. Collective, as the rest."""
        if self.ranks.alone:
            return
        if self._done - self._gathered >= (GATHER_STEPS if self._gathered else 1):
            self._gather()

    def record(self, step: int) -> None:
        """Writes an event of all that was gathered since the last one, up to now."""
        if self.ranks.alone:
            return
        if self._done > self._gathered:
            self._gather()
        if self._untold is None:
            return
        phases = {
            name: [round(one, MICROSECONDS) for one in spent]
            for name, spent in self._untold.seconds.items()
            if any(spent)
        }
        sent = {purpose: round(size) for purpose, size in self._untold_bytes.items() if size}
        self.outlets.directory.event("ranks", step=step, steps=self._untold.steps, phases=phases, sent_bytes=sent)
        self._untold, self._untold_bytes = None, {}

    def _gather(self) -> None:
        spent, sent = self.outlets.clock.totals(), sent_by_purpose(self.ranks.sent_bytes)
        own = [*(spent[name] for name in PHASES), *(sent[name] - self._sent_earlier[name] for name in SENT_FOR)]
        told = self.ranks.gather(own)
        before = self._before or [[0.0] * len(own)] * len(told)
        since = [[now - then for now, then in zip(*one, strict=True)] for one in zip(told, before, strict=True)]
        columns = [list(column) for column in zip(*since, strict=True)]
        sizes = {name: sum(column) for name, column in zip(SENT_FOR, columns[len(PHASES) :], strict=True)}
        self.outlets.metrics.ranks.sent(sizes)
        first, steps = not self._gathered, self._done - self._gathered
        self._gathered, self._before = self._done, told
        if first:
            return
        times = RankTimes(steps=steps, seconds=dict(zip(PHASES, columns[: len(PHASES)], strict=True)))
        self.outlets.metrics.ranks.times(times)
        self.outlets.live.ranks(times)
        self._untold = times if self._untold is None else self._untold + times
        self._untold_bytes = {name: size + self._untold_bytes.get(name, 0.0) for name, size in sizes.items()}


def sent_by_purpose(sent_bytes: Mapping[str, int]) -> dict[str, int]:
    """Bytes by every label of `SENT_FOR`."""
    found = dict.fromkeys(SENT_FOR, 0)
    for what, size in sent_bytes.items():
        name = PURPOSES.get(what, what)
        found[name if name in found else "other"] += size
    return found
