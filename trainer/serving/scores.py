"""The logits of lines in their order: kept on disk while they are made, then written as probabilities."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

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

NO_LABEL, REJECTED = 254, 255
RECORD = np.dtype([("logit", "<f4"), ("probability", "<f4"), ("label", "u1")])
"""Of a line: the model's logit, its sigmoid (made in the same pass, as its last bit can depend on how many there are at
once), and its label, NO_LABEL, or REJECTED where there is no row and so no logit."""
WEIGHTED_RECORD = np.dtype([*RECORD.descr, ("weight", "<f4")])
"""The same with how often the row counts."""
_AT_ONCE = 128 * EVALUATION_BATCH_ROWS
_SCHEMA = pa.schema([("probability", pa.float32())])


class KeptScores:
    """OUT.partial: the records of the lines that are done, and how far they go, for as long as OUT is being made."""

    def __init__(self, out: Path, identity: Mapping[str, Any], record: np.dtype = RECORD) -> None:
        self.folder = out.with_name(out.name + ".partial")
        self._out, self._identity, self._record = out, dict(identity), record
        self.lines = self.rows = 0
        """That are done."""

    def __enter__(self) -> KeptScores:
        """Takes up what an earlier call left, if it was for the same scores.

        Raises: InputError if another process makes them now; StorageError if nothing can be written.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be written ({cause_of(error)}); give another --out") from error
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self._out} is being written by another process; wait for it, or give another --out"
            ) from None
        self.lines, self.rows = self._done()
        self._file = self._records.open("ab")
        self._file.truncate(self.lines * self._record.itemsize)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.close()
        self._lock.release()
        if not self.lines:  # nothing to go on with
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _records(self) -> Path:
        return self.folder / "logits"

    def _done(self) -> tuple[int, int]:
        """Lines and rows that an earlier call for the same scores has finished."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            size = self._records.stat().st_size
        except (OSError, ValueError):
            return 0, 0
        if state["identity"] != self._identity or size < state["lines"] * self._record.itemsize:
            return 0, 0
        return state["lines"], state["rows"]

    def add(self, records: NDArray[np.void], rows: int) -> None:
        """Keeps those of further lines, `rows` of them rows."""
        with self._writing():
            self._file.write(records.tobytes())
        self.lines += len(records)
        self.rows += rows

    def commit(self) -> None:
        """What is there now outlives a crash."""
        state = {"identity": self._identity, "lines": self.lines, "rows": self.rows}
        with self._writing():
            self._file.flush()
            sync_file(self._records)
            write_atomically(self.folder / "state.json", json.dumps(state).encode())

    def publish(self, scored: Scored) -> Evaluation | None:
        """Writes OUT whole and deletes the rest; by `scored`, how good the scores are, if the rows have labels."""
        made = self.folder / f"scores{self._out.suffix}"
        with self._writing():
            self._file.flush()
            with made.open("wb") as file, _writer(file, self._out.suffix) as writer:
                for records in self._read():
                    writer.write_table(probabilities(records))
                    scored.add(records)
            sync_file(made)
            made.replace(self._out)
            sync_folder(self._out.absolute().parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        return scored.result()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises: StorageError where the disk is full or fails."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be written ({cause_of(error)}); make room and run the same command again to "
                "continue"
            ) from error

    def _read(self) -> Iterator[NDArray[np.void]]:
        with self._records.open("rb") as file:
            while len(records := np.fromfile(file, self._record, count=_AT_ONCE)):
                yield records


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
