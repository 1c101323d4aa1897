"""Threads that stop together, and what they hand to one another: queues that end, and a bound on bytes that wait."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np

from pipeline.source import Block, new_memory

T = TypeVar("T")


class StoppedError(Exception):
    """Ends a thread because another one failed or the caller gave up."""


class Crew:
    """Threads of which the first that fails stops all; one condition guards everything that they share."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._error: BaseException | None = None

    def start(self, count: int, work: Callable[..., None], *arguments: object) -> None:
        """Do the same work in `count` threads."""
        for _ in range(count):
            thread = threading.Thread(target=self._guarded, args=(work, arguments), name="preprocess")
            self._threads.append(thread)
            thread.start()

    def join(self, every_seconds: float, report: Callable[[], None]) -> None:
        """Wait until all threads have ended, calling `report` now and then.

        Raises: what a thread raised first, or `report`; no thread is alive then either.
        """
        try:
            while any(thread.is_alive() for thread in self._threads):
                last = self._threads[-1]
                last.join(every_seconds) if last.is_alive() else time.sleep(every_seconds / 10)
                report()
        finally:
            self.stop()
            for thread in self._threads:
                thread.join()
        if self._error:
            raise self._error

    def stop(self) -> None:
        with self.changed:
            self._stopped = True
            self.changed.notify_all()

    def check(self) -> None:
        """Raises: StoppedError once the threads are to stop."""
        if self._stopped:
            raise StoppedError

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait, holding `changed`, until the condition holds. Raises: StoppedError if the threads are to stop first."""
        self.changed.wait_for(lambda: self._stopped or condition())
        self.check()

    def _guarded(self, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
        try:
            work(*arguments)
        except StoppedError:
            pass
        except BaseException as error:
            with self.changed:
                self._error = self._error or error
            self.stop()


class Handover(Generic[T]):
    """A queue of at most `limit` items; it ends when each of its `writers` has left it."""

    def __init__(self, crew: Crew, *, limit: float, writers: int) -> None:
        self._crew, self._limit, self._writers = crew, limit, writers
        self._items: deque[T] = deque()

    def put(self, item: T) -> None:
        """Raises: StoppedError."""
        with self._crew.changed:
            self._crew.wait_for(lambda: len(self._items) < self._limit)
            self._items.append(item)
            self._crew.changed.notify_all()

    def leave(self) -> None:
        """A writer's last call."""
        with self._crew.changed:
            self._writers -= 1
            self._crew.changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Items as they come, to the end; several threads share them. Raises: StoppedError."""
        while True:
            with self._crew.changed:
                self._crew.wait_for(lambda: bool(self._items) or not self._writers)
                if not self._items:
                    return
                item = self._items.popleft()
                self._crew.changed.notify_all()
            yield item

    def rest(self) -> list[T]:
        """What nobody took, after the threads have ended."""
        return list(self._items)


class ReadAhead:
    """Blocks of one stream that wait for workers, at most `limit_bytes` of them; one of any size may wait alone.

    One for each stream: were it shared, parts that nobody works on yet could use it up while the workers wait for the
    next bytes of another stream.
    """

    def __init__(self, crew: Crew, limit_bytes: int) -> None:
        self._crew, self._limit_bytes = crew, limit_bytes
        self._waiting_bytes = 0
        self._free: list[np.ndarray] = []
        """Memory of blocks that were encoded: to ask for fresh memory costs more than to decompress into it."""

    def memory(self) -> np.ndarray:
        """Room for a block."""
        try:
            return self._free.pop()
        except IndexError:
            return new_memory()

    def hold(self, block: Block) -> None:
        """Wait until there is room for `block`. Raises: StoppedError."""
        size = block.stop - block.start
        with self._crew.changed:
            self._crew.wait_for(lambda: not self._waiting_bytes or self._waiting_bytes + size <= self._limit_bytes)
            self._waiting_bytes += size

    def release(self, block: Block) -> None:
        """A block that was held is done with."""
        self.recycle(block)
        with self._crew.changed:
            self._waiting_bytes -= block.stop - block.start
            self._crew.changed.notify_all()

    def recycle(self, block: Block) -> None:
        """Give back the memory of a block that was not held."""
        self._free.append(block.buffer)
