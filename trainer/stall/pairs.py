"""Pairs for the trials: the feed's own with their shapes remembered, or one pair repeated in those shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.device import DevicePair, Feed, StreamWait


@dataclass(frozen=True, kw_only=True)
class PairShape:
    """What the compute trial repeats of a pair that another trial had."""

    probe_rows: int
    rows: int
    fresh: bool


class RememberedPairs:
    """A feed's pairs, their shapes kept in `shapes`."""

    def __init__(self, feed: Feed) -> None:
        self.shapes: list[PairShape] = []
        self.last_wait: StreamWait | None = None
        self._feed = feed

    def __next__(self) -> DevicePair:
        pair = next(self._feed)
        self.last_wait = self._feed.last_wait
        self.shapes.append(PairShape(probe_rows=pair.b1.rows, rows=pair.rows, fresh=pair.fresh))
        return pair


class RepeatedPair:
    """One pair on the device, handed out again and again, cut to each of `shapes` and then to the last of them.

    The last repeats for the steps that are under way when the trial is told to stop.
    """

    last_wait = None

    def __init__(self, pair: DevicePair, shapes: list[PairShape]) -> None:
        self._pair, self._shapes = pair, _last_repeated(shapes)

    def __next__(self) -> DevicePair:
        shape = next(self._shapes)
        b1, b2 = self._pair.b1.head(shape.probe_rows), self._pair.b2.head(shape.rows)
        return replace(self._pair, b1=b1, b2=b2, b1_rows=b1.rows, b2_rows=b2.rows, fresh=shape.fresh)


def _last_repeated(shapes: list[PairShape]) -> Iterator[PairShape]:
    yield from shapes
    while True:
        yield shapes[-1]
