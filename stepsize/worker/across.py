"""Measuring where each of several processes has a share of the batch: what is refused, and what is merged."""

from __future__ import annotations

from dataclasses import dataclass

from stepsize.errors import MeasurementError
from stepsize.measuring import Gather, merged_shares
from stepsize.options import MeasuringOptions


@dataclass(frozen=True, kw_only=True)
class Across:
    """Merges what every process has summed up of its share; all processes come to the same numbers."""

    gather: Gather

    def merge(
        self, numbers: dict[str, list[float]], options: MeasuringOptions, *, broken: bool
    ) -> tuple[dict[str, list[float]], bool]:
        """The quantities of all rows together, and whether they are `broken` on any process."""
        names = [name for name in numbers if name in ("b1", "b2") or name.startswith("group.")]
        told = [float(broken), *(value for name in names for value in numbers[name])]
        everyone = self.gather(told)
        whole, start = dict(numbers), 1
        for name in names:
            stop = start + len(numbers[name])
            shares = [values[start:stop] for values in everyone]
            whole[name] = merged_shares(shares, from_noise=options.method == "secant")
            start = stop
        return whole, any(values[0] for values in everyone)


def across_of(gather: Gather | None, options: MeasuringOptions, delay: int | None) -> Across | None:
    """What merges, or None for one process.

    Raises: MeasurementError for what cannot be had of shares, and where the clock would decide what is measured.
    """
    if gather is None:
        return None
    if options.diagnostics != "none":
        raise MeasurementError(
            f"diagnostics: {options.diagnostics!r} takes gradients of the whole batch, of which each process has a "
            "share; leave it out, or measure on one process"
        )
    if options.curvature != "ggn":
        raise MeasurementError(
            f"curvature: {options.curvature!r} is a product with a matrix of the whole batch and model, of which each "
            "process has a share; take 'ggn', or measure on one process"
        )
    if delay is None:
        raise MeasurementError(
            "delay: processes that hand an estimate over as it arrives would each do so at another step; give a number"
        )
    return Across(gather=gather)
