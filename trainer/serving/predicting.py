"""A run's probabilities of a click, for the lines of a log or the rows of a data folder, in their order."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.device import ModelInputs, open_lines, open_rows
from pipeline.errors import InputError
from pipeline.lines import RejectedLine
from pipeline.shards import MANIFEST, Manifest
from pipeline.source import Source, find_sources
from trainer.job import EVALUATION_BATCH_ROWS
from trainer.learner import Evaluation, HostCopy
from trainer.serving.opened import OpenedRun, open_run
from trainer.serving.scores import (
    NO_LABEL,
    RECORD,
    REJECTED,
    WEIGHTED_RECORD,
    KeptScores,
    Scored,
    probabilities,
    write_lines,
)

COMMIT_SECONDS = 5.0
"""So much work at most is done again after a kill."""
SHOWN_REJECTS = 5
STANDARD_OUTPUT = "-"
OUT_KINDS = (".parquet", ".csv")


class ScoringBatch(NamedTuple):
    """Lines, and what the model is asked about them."""

    lines: int
    places: NDArray[np.int64] | slice
    """Of the rows among the lines."""
    inputs: ModelInputs | None
    labelled: bool
    examples: Sequence[RejectedLine] = ()


class Rows(Protocol):
    """What is to be scored."""

    def identity(self) -> dict[str, Any]:
        """What scores of it can only be continued with; JSON values."""
        ...

    def total(self) -> int | None:
        """Lines, if they are known."""
        ...

    def batches(self, opened: OpenedRun, *, lines: int, rows: int) -> Iterator[ScoringBatch]:
        """From line `lines` on, before which there were `rows` rows."""
        ...

    def negative_weight(self, opened: OpenedRun) -> float:
        """How many rows of the whole log one of label 0 stands for."""
        ...

    def refuse_changed(self) -> None:
        """Raises: InputError if it is not what it was when it was found."""


@dataclass(frozen=True, kw_only=True)
class LogRows:
    """The lines of a log."""

    sources: tuple[Source, ...]
    labelled: bool | None

    def identity(self) -> dict[str, Any]:
        return {
            "sources": [[each.address, each.size, each.modified_ns] for each in self.sources],
            "labelled": self.labelled,
        }

    def total(self) -> int | None:
        return None

    def negative_weight(self, opened: OpenedRun) -> float:
        return opened.learner.loss.evaluated_negative_weight

    def batches(self, opened: OpenedRun, *, lines: int, rows: int) -> Iterator[ScoringBatch]:
        found = open_lines(
            self.sources,
            opened.log_format,
            table_rows=opened.learner.table_rows,
            device=opened.learner.device,
            batch_rows=EVALUATION_BATCH_ROWS,
            labelled=self.labelled,
            skip_lines=lines,
        )
        for batch, inputs in found:
            yield ScoringBatch(batch.lines, batch.places(), inputs, batch.labelled, batch.examples)

    def refuse_changed(self) -> None:
        for source in self.sources:
            if source.refresh() != source:
                raise InputError(f"{source.address} changed while it was read; predict again once nobody writes to it")


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """The rows of a split of a data folder."""

    manifest: Manifest
    path: str
    split: str

    def identity(self) -> dict[str, Any]:
        return {"shards": [shard.sha256 for shard in self.manifest.splits[self.split].shards]}

    def total(self) -> int | None:
        return self.manifest.splits[self.split].rows

    def negative_weight(self, opened: OpenedRun) -> float:
        return opened.learner.negative_weight(self.manifest, self.split)

    def batches(self, opened: OpenedRun, *, lines: int, rows: int) -> Iterator[ScoringBatch]:
        found = open_rows(
            replace(opened.config.data, path=self.path, damaged="fail"),
            self.manifest,
            table_rows=opened.learner.table_rows,
            device=opened.learner.device,
            split=self.split,
            batch_rows=EVALUATION_BATCH_ROWS,
            first_row=rows,
        )
        for inputs in found:
            yield ScoringBatch(inputs.rows, slice(None), inputs, True)

    def refuse_changed(self) -> None:
        """Its shards never change, and are checked as they are read."""


@dataclass(kw_only=True)
class Predicted:
    """What came of it."""

    step: int
    lines: int = 0
    rows: int = 0
    resumed_lines: int = 0
    """Of these, lines that an earlier call had done."""
    examples: list[RejectedLine] = field(default_factory=list)
    """The first lines without a row that this call met."""
    evaluation: Evaluation | None = None
    """None if the rows have no labels."""

    @property
    def rejected_lines(self) -> int:
        """Lines that hold no row, whose probability is null."""
        return self.lines - self.rows


Report = Callable[[Predicted, int | None], None]
"""Is told how far it is, and the lines there will be if that is known."""


def predict_run(
    run: str | Path,
    sources: Sequence[str],
    out: str,
    *,
    split: str | None = None,
    labelled: bool | None = None,
    checkpoint: int | None = None,
    best: bool = False,
    data: str | None = None,
    force: bool = False,
    report: Report = lambda predicted, total: None,
) -> Predicted:
    """Scores what `sources` name: log files, folders and patterns of them, URIs, `-` for standard input, or one data
    folder, of which `split` (None: validation); into the file `out` (.parquet, .csv), or as text to
    standard output (`-`).

    One probability a line, in order, null (in text `nan`) for a line that is not a row. The weights are those that
    `evaluate` uses, in the same passes, so that rows get the same scores from a log as from the data folder made of it.
    Called again after an interruption it goes on where it stopped, and the file is the same to the byte. `data` is a
    data folder of the run's format, for checkpoints that do not tell of it. `labelled` as in `pipeline.lines`.
    Raises: InputError, ConfigError as `open_run`; for sources that cannot be read or are of another format; for an
    `out` that is there (unless `force`), or of another kind; StorageError if it cannot be written.
    """
    target = None if out == STANDARD_OUTPUT else _target(Path(out), force=force)
    rows, manifest = _rows_of(sources, split, labelled, data)
    opened = open_run(run, checkpoint=checkpoint, best=best, manifest=manifest)
    weighted = opened.log_format.weight and opened.learner.loss.sample_weights is not False
    record = WEIGHTED_RECORD if weighted else RECORD
    predicted = Predicted(step=opened.step)
    with ExitStack() as stack:
        if target is None:
            scored = Scored(rows.negative_weight(opened), record)
            for records, _ in _scored(opened, rows, record, predicted, report):
                scored.add(records)
                write_lines(probabilities(records), sys.stdout)
            sys.stdout.flush()
            rows.refuse_changed()
            _refuse_nothing(predicted, sources)
            predicted.evaluation = scored.result()
            return predicted
        identity = {
            "run": str(Path(run).absolute()),
            "step": opened.step,
            "weights": hashlib.sha256((opened.checkpoint.path / "manifest.json").read_bytes()).hexdigest(),
            "format": opened.log_format.to_dict(),
            "batch_rows": EVALUATION_BATCH_ROWS,
            **rows.identity(),
        }
        kept = stack.enter_context(KeptScores(target, identity, record))
        predicted.lines, predicted.rows, predicted.resumed_lines = kept.lines, kept.rows, kept.lines
        committed = time.monotonic()
        for records, count in _scored(opened, rows, record, predicted, report):
            kept.add(records, count)
            if time.monotonic() - committed >= COMMIT_SECONDS:
                kept.commit()
                committed = time.monotonic()
        _refuse_nothing(predicted, sources)
        rows.refuse_changed()
        predicted.evaluation = kept.publish(Scored(rows.negative_weight(opened), record))
    return predicted


def _refuse_nothing(predicted: Predicted, sources: Sequence[str]) -> None:
    if not predicted.lines:
        raise InputError(f"{', '.join(sources)}: there is no line to score; check the path")


def _scored(
    opened: OpenedRun, rows: Rows, record: np.dtype, predicted: Predicted, report: Report
) -> Iterator[tuple[NDArray[np.void], int]]:
    """The records of further lines, and how many of them are rows; `predicted` is brought up to date with them."""
    total = rows.total()
    with opened.learner.answering() as model, torch.no_grad():
        for batch in rows.batches(opened, lines=predicted.lines, rows=predicted.rows):
            records = np.zeros(batch.lines, record)
            records["label"] = REJECTED
            count = 0
            if batch.inputs is not None:
                logits = model(batch.inputs.dense, batch.inputs.ids).float()
                logits, probability, label = HostCopy(logits, logits.sigmoid(), batch.inputs.label).wait()
                records["logit"][batch.places] = logits.numpy()
                records["probability"][batch.places] = probability.numpy()
                records["label"][batch.places] = label.numpy() if batch.labelled else NO_LABEL
                if record is WEIGHTED_RECORD and batch.inputs.weight is not None:
                    (records["weight"][batch.places],) = HostCopy(batch.inputs.weight).wait()
                count = batch.inputs.rows
            predicted.lines += batch.lines
            predicted.rows += count
            predicted.examples += batch.examples[: SHOWN_REJECTS - len(predicted.examples)]
            yield records, count
            report(predicted, total)


def _rows_of(
    sources: Sequence[str], split: str | None, labelled: bool | None, data: str | None
) -> tuple[LogRows | SplitRows, Manifest | None]:
    """What is to be scored, and the data folder whose format it has, if one is named."""
    folders = [each for each in sources if (Path(each) / MANIFEST).is_file()]
    if folders:
        if len(sources) > 1:
            raise InputError(f"{folders[0]} is a data folder, which is scored by itself; name it alone")
        manifest = Manifest.load(folders[0])
        return SplitRows(manifest=manifest, path=folders[0], split=split or "validation"), manifest
    if split is not None:
        raise InputError(f"--split {split} is of a data folder, and {', '.join(sources)} are logs; leave it out")
    found = find_sources(sources)
    return LogRows(sources=tuple(found.sources), labelled=labelled), Manifest.load(data) if data else None


def _target(out: Path, *, force: bool) -> Path:
    if out.suffix not in OUT_KINDS:
        raise InputError(f"{out}: end its name in {' or '.join(OUT_KINDS)}, or give - for standard output")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: {out.absolute().parent} is no folder; make it, or give another --out")
    if out.is_dir() or (out.exists() and not force):
        raise InputError(f"{out} is there already; give another --out, or --force to replace it")
    return out
