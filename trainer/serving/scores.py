"""The logits of lines in their order: kept on disk while they are made, then written as probabilities."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.errors import InputError, StorageError, cause_of
from pipeline.shards import sync_file, sync_folder, write_atomically
from trainer.job import EVALUATION_BATCH_ROWS
from trainer.learner import Evaluation, Evaluator
from trainer.serving.leftovers import STATE, Leftover, partial_folder

NO_LABEL, REJECTED = 254, 255
RECORD = np.dtype([("logit", "<f4"), ("probability", "<f4"), ("label", "u1")])
"""Of a line: the model's logit, its sigmoid (made in the same pass, as its last bit can depend on how many there are at
once), and its label, NO_LABEL, or REJECTED where there is no row and so no logit."""
WEIGHTED_RECORD = np.dtype([*RECORD.descr, ("weight", "<f4")])
"""The same with how often the row counts."""
REJECTS = "rejects"
_AT_ONCE = 128 * EVALUATION_BATCH_ROWS
_SCHEMA = pa.schema([("probability", pa.float32())])


class LinesDone(NamedTuple):
    """How far scores are."""

    lines: int = 0
    rows: int = 0
    rejects_bytes: int = 0


class KeptScores:
    """OUT.partial: the records of the lines that are done, and how far they go, for as long as OUT is being made."""

    def __init__(
        self,
        out: Path,
        identity: Mapping[str, Any],
        record: np.dtype = RECORD,
        *,
        rejects: Path | None = None,
        force: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`rejects`: the file that rejected lines are to be in, with OUT. `force` drops what is left of other scores,
        whoever could go on with it; `warn` is told of what is dropped."""
        self.folder = partial_folder(out)
        self._out, self._identity, self._force, self._warn = out, dict(identity), force, warn
        self._record, self._rejects_out = record, rejects
        self._done = LinesDone()
        self._ending = False

    def __enter__(self) -> KeptScores:
        """Takes up what an earlier call left, if it was for the same scores.

        Raises: InputError if another process makes them now, or there are others that could be gone on with;
        StorageError if nothing can be written.
        """
        with ExitStack() as stack:
            with writing(self.folder, remedy="give another --out"):
                self.folder.mkdir(exist_ok=True)
                stack.enter_context(self._lock())
            if (left := self._left()) is not None:
                self._done, self._ending = LinesDone(left.lines, left.rows, left.rejects_bytes), left.ending
            with writing(self.folder):
                self._file = stack.enter_context(self._records.open("ab"))
                self._file.truncate(self.lines * self._record.itemsize)
                self.rejects = None
                """Takes rejected lines, from any thread, ahead of the records."""
                if self._rejects_out is not None:
                    file = stack.enter_context((self.folder / REJECTS).open("ab"))
                    file.truncate(self._done.rejects_bytes)
                    self.rejects = RejectsWriter(file, self.folder)
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            with suppress(OSError):
                self.commit()
        with suppress(OSError):
            self._file.close()
        if not self.lines or "once" in self._identity:  # nothing to go on with
            self.discard()
        with suppress(OSError):
            self._open.close()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            with FileLock(self.folder / "lock", timeout=0):
                yield
        except Timeout:
            raise InputError(
                f"{self._out} is being written by another process; wait for it, or give another --out"
            ) from None

    @property
    def lines(self) -> int:
        """That are done."""
        return self._done.lines

    @property
    def rows(self) -> int:
        """Of these lines."""
        return self._done.rows

    @property
    def _records(self) -> Path:
        return self.folder / "logits"

    def _left(self) -> Leftover | None:
        """What an earlier call for the same scores has finished."""
        left = Leftover.beside(self._out)
        if left is None or not left.lines:
            return None
        other = left.differs(self._identity)
        if other is None:
            sizes = [(self._records, left.lines * self._record.itemsize), (self.folder / REJECTS, left.rejects_bytes)]
            if all(not size or (path.is_file() and path.stat().st_size >= size) for path, size in sizes):
                return left
            other = "and is damaged"
        elif not self._force and left.can_be_finished():
            raise InputError(
                f"{self.folder} has {left.lines:,} lines {other}; {left.finished_by(self._identity)} to finish it, "
                "give another --out, or --force to drop them"
            )
        self._warn(f"{self.folder} has {left.lines:,} lines {other}; they are dropped, and all lines scored anew")
        return None

    def add(self, records: NDArray[np.void], rows: int, rejects_bytes: int = 0) -> None:
        """Keeps those of further lines, `rows` of them rows; of the others `rejects` got so many bytes."""
        with writing(self.folder):
            self._file.write(records.tobytes())
        done = self._done  # replaced at once, as a signal may end this between any two lines
        self._done = LinesDone(done.lines + len(records), done.rows + rows, done.rejects_bytes + rejects_bytes)

    def commit(self) -> None:
        """What is there now outlives a crash."""
        left = Leftover(identity=self._identity, ending=self._ending, **self._done._asdict())
        with writing(self.folder):
            self._file.flush()
            sync_file(self._records)
            if self.rejects is not None:
                self.rejects.flush()
                sync_file(self.folder / REJECTS)
            write_atomically(self.folder / STATE, json.dumps(asdict(left)).encode())

    def publish(self, scored: Scored) -> Evaluation | None:
        """Writes OUT whole and deletes the rest; by `scored`, how good the scores are, if the rows have labels."""
        made = self.folder / f"scores{self._out.suffix}"
        with writing(self.folder):
            self._file.flush()
            with made.open("wb") as file, _writer(file, self._out.suffix) as writer:
                for records in self._read():
                    writer.write_table(probabilities(records))
                    scored.add(records)
            sync_file(made)
        if self._rejects_out is not None:
            self._ending = True
            self.commit()
            with (
                written_whole(self._rejects_out) as file,
                writing(self._rejects_out),
                (self.folder / REJECTS).open("rb") as kept,
            ):
                shutil.copyfileobj(kept, file)
        with writing(self.folder):
            made.replace(self._out)
            sync_folder(self._out.absolute().parent)
        self.discard()
        return scored.result()

    def discard(self) -> None:
        """Deletes what is kept; nobody goes on with it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> Iterator[NDArray[np.void]]:
        with self._records.open("rb") as file:
            while len(records := np.fromfile(file, self._record, count=_AT_ONCE)):
                yield records


class RejectsWriter:
    """A file of rejected lines; its errors say where they are from."""

    def __init__(self, file: IO[bytes], where: Path) -> None:
        self._file, self._where = file, where

    def write(self, data: bytes) -> None:
        """Raises: StorageError."""
        with writing(self._where):
            self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def writing(path: Path, *, remedy: str = "make room and run the same command again to continue") -> Iterator[None]:
    """Raises: StorageError where the disk is full or fails."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({cause_of(error)}); {remedy}") from error


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name, and durable, at the end of the block; with an error there is none, or the old one.

    Raises: StorageError if it cannot be made.
    """
    temporary = path.with_name(path.name + ".tmp")
    with ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        with writing(path):
            file = stack.enter_context(temporary.open("wb"))
        yield file
        with writing(path):
            file.close()
            sync_file(temporary)
            temporary.replace(path)
            sync_folder(path.absolute().parent)


class Scored:
    """How good scores are, of records in their order; in the batches of `evaluate`, so that its sums are the same."""

    def __init__(self, negative_weight: float, record: np.dtype = RECORD) -> None:
        self._evaluator = Evaluator(negative_weight=negative_weight)
        self._left = np.empty(0, record)
        self.rows = 0

    def add(self, records: NDArray[np.void]) -> None:
        """Takes in further lines; those without a label do not count."""
        self._left = np.concatenate([self._left, records[records["label"] < NO_LABEL]])
        whole = len(self._left) - len(self._left) % EVALUATION_BATCH_ROWS
        for start in range(0, whole, EVALUATION_BATCH_ROWS):
            self._count(self._left[start : start + EVALUATION_BATCH_ROWS])
        self._left = self._left[whole:]

    def result(self) -> Evaluation | None:
        """None without a labelled row."""
        if len(self._left):
            self._count(self._left)
        return self._evaluator.result("predicted") if self.rows else None

    def _count(self, records: NDArray[np.void]) -> None:
        self.rows += len(records)
        logits, label = records["logit"].copy(), records["label"].astype(np.float32)
        weight = torch.from_numpy(records["weight"].copy()) if "weight" in (records.dtype.names or ()) else None
        self._evaluator.add(torch.from_numpy(logits), torch.from_numpy(label), weight)


def probabilities(records: NDArray[np.void]) -> pa.Table:
    """Column `probability`, float32: null for a rejected line."""
    return pa.table([pa.array(records["probability"].copy(), mask=records["label"] == REJECTED)], schema=_SCHEMA)


def write_lines(table: pa.Table, file: IO[str]) -> None:
    """One line each: the shortest decimal that is the same float32, `nan` for a rejected line, since readers of CSV
    skip empty ones."""
    column = table["probability"].to_numpy()
    file.write("".join(f"{value!s}\n" for value in column))


class _CsvWriter:
    """As parquet.ParquetWriter, of CSV."""

    def __init__(self, file: IO[bytes]) -> None:
        self._text = io.TextIOWrapper(file, encoding="ascii", newline="\n", write_through=True)

    def __enter__(self) -> _CsvWriter:
        self._text.write("probability\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._text.detach()

    def write_table(self, table: pa.Table) -> None:
        write_lines(table, self._text)


def _writer(file: IO[bytes], suffix: str) -> parquet.ParquetWriter | _CsvWriter:
    return _CsvWriter(file) if suffix == ".csv" else parquet.ParquetWriter(file, _SCHEMA)
