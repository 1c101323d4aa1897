"""A window of the sequence on its way into memory: all of it, or the rows that a rank needs."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.buffers import BufferPool
from pipeline.rows.order import Mixture, ShuffleWindow, Spans


class WindowLoad:
    """A window on its way into memory, or of it the rows of `spans`."""

    def __init__(  # noqa: PLR0917
        self,
        window: ShuffleWindow,
        group_rows: NDArray[np.int64],
        spans: Spans | None,
        columns: int,
        label_type: DTypeLike,
        buffers: BufferPool,
        *,
        shuffled: bool,
    ) -> None:
        sizes = np.asarray([window.stop - window.start]) if spans is None else spans[:, 1] - spans[:, 0]
        rows = int(sizes.sum())
        self.window, self.spans = window, spans
        self._firsts = np.cumsum(sizes) - sizes
        """Where the rows of each span start in memory."""
        self.starts = np.concatenate(([0], np.cumsum(group_rows))) if spans is None or shuffled else np.array([0, rows])
        self.label = buffers.take((rows,), label_type)
        self.values = buffers.take((columns, rows), np.int32)
        self.read_label, self.read_values = self.label, self.values
        """Where row groups are read to: the same memory, unless rows are mixed afterwards."""
        if shuffled:
            self.read_label = buffers.take((rows,), label_type)
            self.read_values = buffers.take((columns, rows), np.int32)
        self.mixture: Mixture | None = None
        self.present: NDArray[np.bool_] | None = None
        self.damaged = False
        self.ready: Future[None] = Future()

    def forget_order(self) -> None:
        """Gives back what only mixing needed."""
        self.mixture = None
        self.read_label, self.read_values = self.label, self.values

    def lose(self, rows: slice) -> None:
        """Marks rows of a damaged group; they are left out of every part."""
        self.damaged = True
        if self.present is None:
            self.present = np.ones(len(self.label), np.bool_)
        self.present[rows] = False

    def rows_of_group(self) -> NDArray[np.uint32] | None:
        """Which rows of the one group of a window that is not shuffled are held; None: all of them."""
        if self.spans is None:
            return None
        pieces = [np.arange(start, stop, dtype=np.uint32) for start, stop in self.spans - self.window.start]
        return np.concatenate([np.empty(0, np.uint32), *pieces])

    def rows_present(self, start: int, stop: int) -> int:
        """How many of the rows of [start, stop) that lie in this window are not damaged, once it is ready."""
        rows = self._inside(start, stop)
        return rows.stop - rows.start if self.present is None else int(self.present[rows].sum())

    def span_of(self, start: int, stop: int, low: int, high: int) -> slice:
        """Where in the window the rows low to high − 1 of those lie, with the damaged ones between."""
        rows = self._inside(start, stop)
        if low == high:
            return slice(rows.start, rows.start)
        if self.present is None:
            return slice(rows.start + low, rows.start + high)
        there = rows.start + np.flatnonzero(self.present[rows])
        return slice(int(there[low]), int(there[high - 1]) + 1)

    def holds(self, rows: slice) -> bool:
        """Whether `rows` of the window are among those in memory."""
        if self.spans is None or rows.start == rows.stop:
            return True
        n = self._span_at(rows)
        return n >= 0 and rows.stop + self.window.start <= self.spans[n, 1]

    def part(self, rows: slice) -> tuple[NDArray, NDArray[np.int32]]:
        """Labels (R,) and columns (C, R) of `rows` of the window, without those that are damaged."""
        if self.spans is not None:
            shift = 0 if rows.start == rows.stop else self._shift(rows)
            here = slice(rows.start + shift, rows.stop + shift) if rows.start < rows.stop else slice(0, 0)
            return self.label[here], self.values[:, here]
        if self.present is None:
            return self.label[rows], self.values[:, rows]
        present = self.present[rows]
        return self.label[rows][present], self.values[:, rows][:, present]

    def _inside(self, start: int, stop: int) -> slice:
        size = self.window.stop - self.window.start
        return slice(max(start - self.window.start, 0), min(stop - self.window.start, size))

    def _span_at(self, rows: slice) -> int:
        """The span that holds the first of `rows`, if one does."""
        assert self.spans is not None
        return int(np.searchsorted(self.spans[:, 0], rows.start + self.window.start, side="right")) - 1

    def _shift(self, rows: slice) -> int:
        """From a row's place in the window to its place in memory."""
        assert self.spans is not None
        n = self._span_at(rows)
        return int(self._firsts[n] + self.window.start - self.spans[n, 0])
