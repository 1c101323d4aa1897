"""A data folder that generations are added to while its rows are read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace

from pipeline.errors import InputError
from pipeline.shards import Manifest

PATIENCE_SECONDS = 600.0
"""So long a manifest that cannot be read is looked at again before that is an error: a network may be away."""


class GrowingLog:
    """The generations of a data folder: those that its manifest lists, and those that it will.

    Safe to use from any thread, though only one looks. A look costs a file's stamp, and reading the manifest where that
    is another; it is taken at most every `poll_seconds`.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        data: str,
        poll_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`manifest` is that of the folder or URI `data`, as it is now or was a moment ago."""
        self.manifest = manifest
        """As of the last look that succeeded."""
        self.trouble: str | None = None
        """Why the last look failed; None if it did not."""
        self._data, self._poll_seconds, self._monotonic = data, poll_seconds, monotonic
        self._stamp: object = None
        self._looked = self._succeeded = monotonic()
        self._wake = threading.Condition()

    @property
    def count(self) -> int:
        """Generations that are known."""
        return len(self.manifest.generations)

    def generation(self, index: int) -> Manifest | None:
        """The folder as if generation `index` were all of it; None if that isn't known yet."""
        generations = self.manifest.generations
        if index >= len(generations):
            return None
        return replace(self.manifest, splits=generations[index].splits, listed=())

    def rows(self, split: str, index: int) -> int | None:
        """Rows of `split` in generation `index`; None if that isn't known yet."""
        found = self.generation(index)
        return None if found is None else found.splits[split].rows

    def look_if_due(self) -> None:
        """Looks for new generations, if the last look is `poll_seconds` ago. Raises: as `look`."""
        if self._monotonic() - self._looked >= self._poll_seconds:
            self.look()

    def look(self) -> None:
        """Looks for new generations now; a failure is kept in `trouble`, for a while.

        Raises: InputError if a generation that was known is gone or is another now; OSError or InputError of the
        latest look when none has succeeded for PATIENCE_SECONDS.
        """
        self._looked = self._monotonic()
        try:
            stamp = self.manifest.stamp()
            if stamp != self._stamp:
                self._take(Manifest.load(self._data))
                self._stamp = stamp
        except _ChangedLogError:
            raise
        except (OSError, InputError) as error:
            if self._looked - self._succeeded > PATIENCE_SECONDS:
                raise
            self.trouble = str(error)
        else:
            self.trouble, self._succeeded = None, self._looked

    def wait(self, index: int, closed: Callable[[], bool]) -> Manifest:
        """`generation(index)`, once it is there, with a look every `poll_seconds`.

        Raises: CancelledError once `closed` (tell by `wake`); as `look`.
        """
        while (found := self.generation(index)) is None:
            with self._wake:
                if closed():
                    raise CancelledError
                left = self._looked + self._poll_seconds - self._monotonic()
                if left > 0:
                    self._wake.wait(left)
                    continue
            self.look()
        return found

    def wake(self) -> None:
        """Lets `wait` ask again whether it is over."""
        with self._wake:
            self._wake.notify_all()

    def _take(self, manifest: Manifest) -> None:
        before, now = self.manifest.generations, manifest.generations
        for one in before:
            gone = one.index >= len(now)
            if gone or now[one.index].splits != one.splits:
                raise _ChangedLogError(
                    f"{manifest.folder}: generation {one.index} {'is gone' if gone else 'has other rows now'}, and a "
                    "log that is followed only grows; restore it, or start a new run on the folder as it is"
                )
        if manifest.format != self.manifest.format:
            raise _ChangedLogError(f"{manifest.folder}: its columns are others now; restore it, or start a new run")
        self.manifest = manifest


class _ChangedLogError(InputError):
    """What was read is not there any more."""
