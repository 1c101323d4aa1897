"""What a rank that has no terminal writes: its last lines in memory, all of them in a small file of the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

MOST_BYTES = 1_000_000
"""Of the file; then it becomes `rank-N.log.1`, in place of the one before."""
KEPT_LINES = 1000
"""In memory, until there is a run to write into."""
TAIL_LINES = 20


class RankLog:
    """Lines of one rank, appended to `path` once `begun` says that the run is there; none is waited for, or fails."""

    def __init__(self, path: Path, *, begun: Callable[[], bool], most_bytes: int = MOST_BYTES) -> None:
        self.path = path
        self._begun, self._most_bytes = begun, most_bytes
        self._tail = deque[bytes](maxlen=TAIL_LINES)
        self._waiting = deque[bytes](maxlen=KEPT_LINES)
        self._lock = Lock()
        """A child that a rank leaves behind may still write while the next one begins."""

    def write(self, line: bytes) -> None:
        """Takes one line; lines that cannot be written to a full or dead disk stay in memory, the last of them."""
        with self._lock:
            self._tail.append(line)
            self._waiting.append(line)
        self.flush()

    def flush(self) -> None:
        """Writes what waits, if it can be written."""
        with self._lock, suppress(OSError):
            if not self._waiting or not self._begun():
                return
            self.path.parent.mkdir(exist_ok=True)
            if self.path.exists() and self.path.stat().st_size >= self._most_bytes:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            with self.path.open("ab") as file:
                file.write(b"".join(self._waiting))
            self._waiting.clear()

    def tail(self) -> list[str]:
        """The last lines."""
        return [line.decode(errors="replace").rstrip() for line in list(self._tail)]

    def forget(self) -> None:
        """Another process begins to write: what the one before wrote last is no longer the tail."""
        self._tail.clear()
