"""JSON-lines files of a run that a checkpoint can cut back to where it stood, whatever becomes of the disk."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import msgspec

from pipeline.errors import StorageError
from pipeline.shards import sync_descriptor, sync_folder
from trainer.records.lines import Extent, LineIndex, index_lines

_encode = json.JSONEncoder(allow_nan=False).encode
Line = TypeVar("Line")
Rewrite = Callable[[LineIndex], Callable[[BinaryIO], None] | None]
"""Told where the lines of a file lie, gives what writes it anew; None where it is to stay."""
BUFFER_BYTES = 1 << 16
"""So much is written at once, unless somebody asks earlier."""
WAITING_BYTES = 64 << 20
"""So much of what cannot be written waits in memory: some 150,000 steps."""
UNITS = {"steps": "steps", "alpha": "estimates", "horizon": "measurements", "evals": "evaluations", "events": "events"}
"""What one record of a file is."""


class Records:
    """One JSON object a line, in order; cut back to where a checkpoint stood. Written by one process, from any thread.

    Once it is open no OSError gets out of it: lines that cannot be written wait in memory, at most `limit_bytes` of
    them, and are written once that is possible again, whole and in order. Beyond it the oldest are lost, and counted.
    What a person should know is in `trouble` and `take_notices`.

    `one_a_step`: the records' steps ascend, which is what lets `cut` find a place in a file that was rewritten.
    `never_cut`: `cut` forgets none of them, and only tells what is missing.
    """

    def __init__(
        self, path: Path, *, one_a_step: bool = False, never_cut: bool = False, limit_bytes: int = WAITING_BYTES
    ) -> None:
        self.path = path
        self.trouble: OSError | None = None
        """Why the file could not be written at the latest try; None if it could."""
        self.lost = 0
        """Records lost because too many waited."""
        self._one_a_step, self._never_cut, self._limit_bytes = one_a_step, never_cut, limit_bytes
        self._lock = threading.Condition()
        self._frozen = False
        """The file is being rewritten."""
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._waiting_bytes = self._tried_bytes = 0
        self._lost_steps: list[int] = []
        self._notices: list[str] = []
        self._written = Extent()
        self._file: int | None = self._open()
        self._length = _whole_lines(self._file)
        os.ftruncate(self._file, self._length)

    @property
    def waiting(self) -> int:
        """Records that are not in the file yet."""
        return len(self._waiting)

    @property
    def extent(self) -> Extent:
        """How far the records reach, the waiting ones included; `cut` counts those of earlier processes."""
        with self._lock:
            last_step = self._waiting[-1][1] if self._waiting else self._written.last_step
            return Extent(last_step=last_step, count=self._written.count + len(self._waiting))

    def take_notices(self) -> list[str]:
        """What has happened to the file since this was last asked, in sentences."""
        with self._lock:
            notices, self._notices = self._notices, []
            return notices

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one line. Numbers that are not finite become null, as JSON has none."""
        line = _encoded(record)
        with self._lock:
            self._waiting.append((line, record.get("step", -1)))
            self._waiting_bytes += len(line)
            while self._waiting_bytes > self._limit_bytes:
                oldest, step = self._waiting.popleft()
                self._waiting_bytes -= len(oldest)
                self._lost_steps.append(step)
                self.lost += 1
            if self._waiting_bytes - self._tried_bytes >= BUFFER_BYTES:
                self.flush()

    def flush(self) -> None:
        """Hands everything appended to the operating system, so that other processes see it."""
        with self._lock:
            if self._waiting and not self._frozen:
                with self._troubles():
                    self._write(self._found())
                self._tried_bytes = self._waiting_bytes

    def length(self) -> int:
        """The file's length in bytes, everything appended included, for `cut`; on disk only after the next `sync`."""
        with self._lock:
            self.flush()
            return self._length + self._waiting_bytes

    def sync(self) -> None:
        """Puts on disk what was flushed; in any thread, while another one appends."""
        with self._lock:
            self._lock.wait_for(lambda: not self._frozen)
            # a descriptor of its own: the file may be replaced meanwhile, and nobody should wait for the disk
            file = None
            if self._file is not None:
                with self._troubles():
                    file = os.dup(self._file)
        if file is None:
            return
        try:
            with self._troubles():
                sync_descriptor(file)
        finally:
            os.close(file)

    def cut(self, length: int, extent: Extent | None = None) -> None:
        """Forgets what was appended after the file had `length` bytes and `extent`: records that will be made again.

        A file that does not hold as much any more gets a notice of what is missing. Without `extent`, which checkpoints
        of earlier versions do not have, that is told in bytes.
        """
        with self._lock:
            self._lock.wait_for(lambda: not self._frozen)
            self.flush()
            if self._never_cut:
                length = self._length
            else:
                self._waiting.clear()
                self._waiting_bytes = self._tried_bytes = 0
            index = index_lines(self.path, one_a_step=self._one_a_step)
            by_step = extent is not None and (self._one_a_step or self._length < length)
            kept = index.lines_until(extent.last_step) if extent and by_step else index.lines_within(length)
            if extent is not None:
                self._tell_of_missing(extent.count, index.extent(kept).count + len(self._waiting))
            elif self._length < length:
                self._notices.append(
                    f"{self.path.name} is {length - self._length:,} bytes shorter than at the checkpoint: it was cut, "
                    "deleted or replaced; training goes on without those records"
                )
            self._written = index.extent(kept)
            self._length = min(self._length, length) if not by_step else int(index.end[kept - 1]) if kept else 0
            with self._troubles():
                self._found()

    def rewrite(self, plan: Rewrite) -> None:
        """Replaces the file by what `plan` gives, now; as `rewriting` has it."""
        work = self.rewriting(plan)
        if work is not None:
            work()

    def rewriting(self, plan: Rewrite) -> Callable[[], None] | None:
        """The work of replacing the file as it is now by what `plan`, told where its lines lie, gives a function to
        write; whole or not at all. None while lines wait to be written.

        It is to be done once, in any thread. Until then the file stays as it is, and what is appended waits in memory;
        `sync` and `cut` wait for it, while `append`, `flush` and `length` don't. Where the plan is None, nothing
        happens.
        """
        with self._lock:
            self.flush()
            if self._waiting or self._file is None or self._frozen:
                return None
            self._frozen = True
        return partial(self._rewrite, plan)

    def _rewrite(self, plan: Rewrite) -> None:
        partial_file = self.path.with_name(f".{self.path.name}.partial")
        try:
            with self._lock:
                if self._file is None:
                    return
                self._found()
            write = plan(index_lines(self.path, one_a_step=self._one_a_step))
            if write is None:
                return
            with partial_file.open("wb") as file:
                write(file)
                file.flush()
                sync_descriptor(file.fileno())
            with self._lock:
                if self._file is None:  # closed: whoever closed it did not want to wait
                    partial_file.unlink()
                    return
                partial_file.replace(self.path)
                self._reopen()
                self._length = os.fstat(self._file).st_size
            sync_folder(self.path.parent)
        except OSError as error:
            self._notices.append(
                f"{self.path.name} could not be made smaller ({error.strerror or error}); that is tried again later"
            )
            with suppress(OSError):
                partial_file.unlink(missing_ok=True)
        finally:
            with self._lock:
                self._frozen = False
                self._lock.notify_all()
                if self._file is not None:
                    self.flush()

    def close(self) -> None:
        """Writes what waits, if that is possible, and closes the file; one that is being rewritten stays as it was."""
        with self._lock:
            self._frozen = False
            self.flush()
            if self._file is not None:
                with self._troubles():
                    os.close(self._file)
            self._file = None

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def _reopen(self) -> None:
        new = self._open()
        if self._file is not None:
            os.close(self._file)
        self._file = new

    def _found(self) -> int:
        """The file under the name, open, and as long as it was left; a notice if it is another or shorter."""
        assert self._file is not None, "the file is closed"
        replaced = not _is_at(self.path, self._file)
        if replaced:
            self._reopen()
        size = os.fstat(self._file).st_size
        if replaced or size < self._length:
            self._length = _whole_lines(self._file)
            before, index = self._written, index_lines(self.path, one_a_step=self._one_a_step)
            self._written = index.extent(index.lines_within(self._length))
            self._tell_of_missing(before.count, self._written.count)
        if size > self._length:  # a line that is begun, or records of a future that was forgotten
            os.ftruncate(self._file, self._length)
        return self._file

    def _write(self, file: int) -> None:
        """Writes what waits. After an error the file ends with a whole line, now or before the next try."""
        data = b"".join(line for line, _ in self._waiting)
        done = 0
        try:
            while done < len(data):
                done += os.write(file, data[done:])
        finally:
            written = self._forget_waiting(done)
            self._length += written
            if written < done:
                with suppress(OSError):
                    os.ftruncate(file, self._length)
        self._tell_of_lost()

    def _forget_waiting(self, size: int) -> int:
        """Takes the lines that lie whole within the first `size` bytes from those that wait; gives their bytes."""
        taken = 0
        while self._waiting and taken + len(self._waiting[0][0]) <= size:
            line, step = self._waiting.popleft()
            taken += len(line)
            self._written = Extent(last_step=step, count=self._written.count + 1)
        self._waiting_bytes -= taken
        return taken

    def _tell_of_missing(self, before: int, now: int) -> None:
        if now < before:
            self._notices.append(
                f"{self.path.name} lacks {before - now:,} of the {before:,} {self._unit} that were written to it: it "
                "was cut, deleted or replaced; training goes on without those records"
            )

    def _tell_of_lost(self) -> None:
        if self._lost_steps:
            lost = self._lost_steps
            self._notices.append(
                f"{len(lost):,} {self._unit} between step {lost[0]:,} and step {lost[-1]:,} are lost: "
                f"{self.path.name} could not be written for longer than memory held them"
            )
            self._lost_steps = []

    @property
    def _unit(self) -> str:
        return UNITS.get(self.path.stem, "records")

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        """Within it an error of the system is kept instead of raised; without one the trouble is over."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.path)
            self.trouble = error
        else:
            self.trouble = None


@overload
def read_records(path: Path, *, damaged: Callable[[int], None] | None = None) -> Iterator[dict[str, Any]]: ...
@overload
def read_records(path: Path, kind: type[Line], *, damaged: Callable[[int], None] | None = None) -> Iterator[Line]: ...
def read_records(path: Path, kind: Any = dict, *, damaged: Callable[[int], None] | None = None) -> Iterator[Any]:
    """The objects of a JSON-lines file as `kind`, one a line, in order; nothing if there is no such file.

    A line that is not such an object is damaged. Every one of them is passed over and told to `damaged` by its number,
    counted from 1. Without `damaged` only a last line without its end, which a writer may still be at or may have been
    killed at, is passed over.

    Raises: StorageError for any other damaged line, if there is no `damaged` to tell.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        yield from records_in(lines, path, kind, damaged=damaged)


def records_in(
    lines: BinaryIO, path: Path, kind: type[Line], *, damaged: Callable[[int], None] | None
) -> Iterator[Line]:
    """As `read_records`, of a file that is open and was at `path`, from where it stands."""
    decode = msgspec.json.Decoder(kind).decode
    for number, line in enumerate(lines, 1):
        try:
            record = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if not line.strip():
                continue
            if damaged is not None:
                damaged(number)
            elif line.endswith(b"\n"):
                raise StorageError(
                    f"{path}: line {number} is damaged; restore the file from a backup, or delete that line"
                ) from None
            continue
        yield record


def starts_of(run: Path) -> int:
    """How many processes have begun or continued the run at `run` so far, by its event log."""
    events = read_records(run / "events.jsonl", damaged=lambda _: None)
    return sum(record.get("event") in ("start", "resume") for record in events)


def _encoded(record: Mapping[str, Any]) -> bytes:
    """The record as a line; only one that holds what JSON has no form for is copied."""
    try:
        text = _encode(record)
    except (TypeError, ValueError):
        text = _encode(_finite(record))
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _whole_lines(file: int) -> int:
    """Bytes up to the last line end: a process that was killed may leave a line begun."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 4096)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _is_at(path: Path, file: int) -> bool:
    """Whether the open `file` still is the one under `path`."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(file))
