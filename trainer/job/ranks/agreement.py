"""What all ranks decide alike: told from host to host between the steps, so that no device is waited for."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.ranks import ALONE, OtherRowsError, Ranks


@dataclass(kw_only=True)
class Agreement:
    """The latest answers that all ranks have; alone, this rank's own."""

    ranks: Ranks = field(default_factory=lambda: ALONE)
    stop: bool = False
    """A signal asked any of them to stop."""
    save_asked: bool = False
    """A signal asked any of them for a checkpoint, and none is still writing one."""
    save_due: bool = False
    """Rank 0 saves now."""
    broken_weights: int | None = None
    """The latest step of a save that found weights that are not finite, on any of them."""

    def reach(
        self,
        *,
        stop: bool,
        save_asked: bool = False,
        busy: bool = False,
        save_due: bool = False,
        broken_weights: int | None = None,
        seconds: float = 0.0,
    ) -> float:
        """Tells the others what is so here, and takes in what is so there; returns rank 0's `seconds`. Collective.

        Raises: OtherRowsError, on all ranks alike, if the latest step was not of one batch.
        """
        broken = -1 if broken_weights is None else broken_weights
        told = self.ranks.gather([stop, save_asked, busy, save_due, broken, seconds, *self.ranks.batch])
        stops, saves, busies, _, brokens, _, *batch = zip(*told, strict=True)
        _refuse_other_rows(*batch)
        self.stop = any(stops)
        self.save_asked = any(saves) and not any(busies)
        self.save_due = bool(told[0][3])
        self.broken_weights = None if max(brokens) < 0 else int(max(brokens))
        return told[0][5]


def _refuse_other_rows(*batch: tuple[float, ...]) -> None:
    """`batch` are the `Ranks.batch` of all ranks."""
    shares, whole, probes, whole_probe, *place = batch
    alike = all(len(set(told)) == 1 for told in (whole, whole_probe, *place))
    if alike and sum(shares) == whole[0] and sum(probes) == whole_probe[0]:
        return
    told = zip(shares, whole, probes, whole_probe, strict=True)
    rows = ", ".join(
        f"{part:,.0f} of {all_:,.0f} and {probe:,.0f} of {all_probe:,.0f}" for part, all_, probe, all_probe in told
    )
    raise OtherRowsError(f"rank by rank: {rows}")
