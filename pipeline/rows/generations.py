"""The pairs of a log that grows: one generation after another, each once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace

from pipeline.rows.growing import GrowingLog
from pipeline.rows.order import RowPosition
from pipeline.rows.pairs import BatchPair, HostPairs
from pipeline.rows.reader import RowReader
from pipeline.shards import Manifest


class GenerationPairs:
    """The pairs from `position` on, whose epoch is the generation: each in an order of its own, and then the next.

    A generation ends as an epoch does: its last batch may be shorter, and none has rows of two. So which rows make
    which pair is a function of the position, whether the next generation is there yet or not. One without rows in
    `split`, or of damaged rows only (where these are skipped), is passed over.

    `next` is called by one thread, and waits for a generation that isn't there; `close` ends that from another.
    """

    def __init__(
        self,
        log: GrowingLog,
        open_generation: Callable[[Manifest, int], tuple[RowReader, HostPairs]],
        position: RowPosition,
        *,
        split: str,
    ) -> None:
        """`open_generation` opens the generation of an index, which the manifest given has alone."""
        self.position = position
        self.waiting = False
        """Whether no pair comes before a generation is added."""
        self._log, self._open, self._split = log, open_generation, split
        self._lock = threading.Lock()
        self._opened: tuple[int, RowReader, HostPairs] | None = None
        self._closed = False

    def __iter__(self) -> GenerationPairs:
        return self

    def __next__(self) -> BatchPair:
        """The next pair. Raises: CancelledError when closed; as `HostPairs.at` and `GrowingLog.look`."""
        self._log.look_if_due()
        skipped = 0
        while True:
            pairs = self._pairs()
            if pairs is None:
                continue
            found = pairs.at(self.position)
            self.position = found.position
            skipped += found.skipped
            if isinstance(found, BatchPair):
                return replace(found, skipped=skipped)

    def close(self) -> None:
        """Stops the threads; a `next` under way raises CancelledError."""
        with self._lock:
            self._closed = True
            opened = self._opened
        self._log.wake()
        if opened is not None:
            opened[1].close()

    def _pairs(self) -> HostPairs | None:
        """Of the generation of `position`; None if it has no rows, and `position` is after it then."""
        index = self.position.epoch
        if self._opened is not None and self._opened[0] == index:
            return self._opened[2]
        manifest = self._generation(index)
        if manifest.splits[self._split].rows == 0:
            self.position = RowPosition(epoch=index + 1)
            return None
        reader, pairs = self._open(manifest, index)
        with self._lock:
            before, self._opened = self._opened, (index, reader, pairs)
            closed = self._closed
        if before is not None:
            before[1].close()
        if closed:
            reader.close()
            raise CancelledError
        return pairs

    def _generation(self, index: int) -> Manifest:
        found = self._log.generation(index)
        if found is None:
            self._log.look()  # whoever hears that it is waited for may rely on its not being there
            self.waiting = self._log.generation(index) is None
            try:
                found = self._log.wait(index, lambda: self._closed)
            finally:
                self.waiting = False
        return found
