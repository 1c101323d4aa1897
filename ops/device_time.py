"""A device's time of a step as phases: what its queue of work did, and what the host did while that queue was dry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""From and to, in nanoseconds of the host's clock."""


@dataclass(frozen=True, kw_only=True)
class DeviceStep:
    """One step as the device's marks and the host's clock have it, in whole nanoseconds.

    A mark is a point in the device's queue; it passes once all that was queued before it is done.
    """

    gap: int
    """Device time from the mark that ended the step before to this step's first mark."""
    began_at: int
    """The host's time when it queued the first mark."""
    waits: Sequence[Span]
    """When the host waited for rows since the step before, on the host's clock."""
    transfer: int
    """Device time for which the queue waited for the copy of the rows."""
    talks: Sequence[Span] = ()
    """When the host waited for other ranks between the steps, on its clock."""
    work: Sequence[tuple[str, int]]
    """Phases and device times of what came then, up to the step's last mark."""


def phases_of(step: DeviceStep) -> dict[str, int]:
    """The phases of a step in nanoseconds, `data_wait`, `transfer` and `other` among them.

    They sum to gap + transfer + Σ work, the device's time from the last mark of the step before to its own.

    In the gap the queue was dry, so the first mark passed when the host queued it: on the host's clock, the gap
    is [began_at − gap, began_at], and no anchor between the two clocks is needed that could drift. Hence

        data_wait = |[began_at − gap, began_at] ∩ waits|,    communication = |[began_at − gap, began_at] ∩ talks|,
        other = gap − data_wait − communication; to both `work` adds what it gives to them.

    A host that waits for rows while the device still has work costs nothing: only the part of the wait in which the
    queue was dry counts. A device that waits for a host that is busy with something else, launching above all, is
    `other`. Where the queue wasn't dry the gap is the few microseconds between two marks, wherever they are counted.
    """
    dry = (step.began_at - step.gap, step.began_at)
    waited, talked = shared(dry, step.waits), shared(dry, step.talks)
    rest = step.gap - waited - talked
    spent = {"data_wait": waited, "transfer": step.transfer, "communication": talked, "other": rest}
    for phase, nanoseconds in step.work:
        spent[phase] = spent.get(phase, 0) + nanoseconds
    return spent


def shared(span: Span, others: Sequence[Span]) -> int:
    """How much of `span` lies within `others`, spans that don't overlap one another."""
    return sum(max(min(span[1], end) - max(span[0], begin), 0) for begin, end in others)
