"""Threads that may be stuck in a read for ever, and keep neither their owner nor the process from ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

CLOSE_SECONDS = 2.0
"""So long `close` waits for threads that are in the middle of something."""
PREFIX = "alphastream-"

T = TypeVar("T")


class ReaderThreads:
    """Runs tasks on at most `threads` daemon threads, in the order in which they are given.

    Unlike an executor of the standard library, whose threads the interpreter waits for before it ends, it can be left
    with a thread in a read that doesn't return: the thread ends with its read, or with the process.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._limit, self._name = threads, PREFIX + name
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """What `function` will have returned, or raised. Raises: RuntimeError once it is closed."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # crosses to whoever asks the future
                future.set_exception(error)

        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed")
            self._tasks.put(run)
            if len(self._threads) < self._limit:
                thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Drops what hasn't begun and waits for the rest, `seconds` at most; whether no thread is left."""
        with self._lock:
            self._closed = True
            while True:
                try:
                    self._tasks.get_nowait()
                except Empty:
                    break
            for _ in self._threads:
                self._tasks.put(None)
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (run := self._tasks.get()) is not None:
            run()
            del run  # with what it holds, until the next one
