"""A run's probabilities of a click, for the lines of a log or the rows of a data folder, in their order."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.addresses import is_remote, without_secrets
from pipeline.errors import InputError
from pipeline.lines import RejectedLine, RejectsSink
from trainer.job import EVALUATION_BATCH_ROWS
from trainer.learner import Evaluation, HostCopy
from trainer.serving.leftovers import Leftover
from trainer.serving.opened import OpenedRun, open_run, refuse_remote
from trainer.serving.scored_rows import LogRows, Rows, SplitRows, names_of, rows_of
from trainer.serving.scores import (
    NO_LABEL,
    RECORD,
    REJECTED,
    WEIGHTED_RECORD,
    KeptScores,
    RejectsWriter,
    Scored,
    probabilities,
    write_lines,
    written_whole,
)

COMMIT_SECONDS = 5.0
"""So much work at most is done again after a kill."""
SHOWN_REJECTS = 5
STANDARD_OUTPUT = "-"
OUT_KINDS = (".parquet", ".csv")


class ScoredBatch(NamedTuple):
    """Of a batch of lines."""

    records: NDArray[np.void]
    rows: int
    rejects_bytes: int


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
    rejects: str | None = None,
    force: bool = False,
    report: Report = lambda predicted, total: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Predicted:
    """Scores what `sources` name: log files, folders and patterns of them, URIs, `-` for standard input, or one data
    folder or its URI, of which `split` (None: validation); into the file `out` (.parquet, .csv), or as text to
    standard output (`-`).

    One probability a line, in order, null (in text `nan`) for a line that is not a row, which also goes into the file
    `rejects`, as `preprocess` has it: source, line number, reason, the line. The weights are those that
    `evaluate` uses, in the same passes, so that rows get the same scores from a log as from the data folder made of it.
    Called again after an interruption it goes on where it stopped, and the files are the same to the byte. `data` is a
    data folder of the run's format, for checkpoints that do not tell of it. `labelled` as in `pipeline.lines`. `warn`
    is told what a user should know before the end.
    Raises: InputError, ConfigError as `open_run`; for sources that cannot be read or are of another format; for a file
    that is there, or scores that another call can still finish (unless `force`); for an `out` of another kind;
    StorageError if it cannot be written.
    """
    refuse_remote(Path(run))
    target = None if out == STANDARD_OUTPUT else _target(out, force=force)
    rows, manifest = rows_of(sources, split, labelled, data, warn)
    rejected = None if rejects is None else _rejects_target(rejects, rows, target, force=force)
    for written in filter(None, [target, rejected]):
        _refuse_to_replace_source(written, rows)
    opened = open_run(run, checkpoint=checkpoint, best=best, manifest=manifest)
    weighted = bool(opened.log_format.weight) and opened.learner.loss.sample_weights is not False
    record = WEIGHTED_RECORD if weighted else RECORD
    if target is None:
        return _print(opened, rows, record, rejected, report, sources)
    identity = {
        "run": str(Path(run).absolute()),
        "step": opened.step,
        "weights": hashlib.sha256((opened.checkpoint.path / "manifest.json").read_bytes()).hexdigest(),
        "format": opened.log_format.to_dict(),
        "batch_rows": EVALUATION_BATCH_ROWS,
        **({"weighted": True} if weighted else {}),
        **({} if rejected is None else {"rejects": str(rejected.absolute())}),
        **rows.identity(),
    }
    with KeptScores(target, identity, record, rejects=rejected, force=force, warn=warn) as kept:
        predicted = Predicted(step=opened.step, lines=kept.lines, rows=kept.rows, resumed_lines=kept.lines)
        committed = time.monotonic()
        for scores in _scored(opened, rows, record, predicted, report, kept.rejects):
            kept.add(*scores)
            if time.monotonic() - committed >= COMMIT_SECONDS:
                kept.commit()
                committed = time.monotonic()
        _refuse_nothing(predicted, sources)
        try:
            rows.refuse_changed()
        except InputError:
            kept.discard()
            raise
        predicted.evaluation = kept.publish(Scored(rows.negative_weight(opened), record))
    return predicted


def _print(  # noqa: PLR0917
    opened: OpenedRun,
    rows: Rows,
    record: np.dtype,
    rejected: Path | None,
    report: Report,
    sources: Sequence[str],
) -> Predicted:
    """The scores to standard output."""
    predicted = Predicted(step=opened.step)
    scored = Scored(rows.negative_weight(opened), record)
    with ExitStack() as stack:
        file = None if rejected is None else stack.enter_context(written_whole(rejected))
        sink = RejectsWriter(file, rejected) if file and rejected else None
        for scores in _scored(opened, rows, record, predicted, report, sink):
            scored.add(scores.records)
            write_lines(probabilities(scores.records), sys.stdout)
        sys.stdout.flush()
        rows.refuse_changed()
        _refuse_nothing(predicted, sources)
    predicted.evaluation = scored.result()
    return predicted


def _refuse_nothing(predicted: Predicted, sources: Sequence[str]) -> None:
    if not predicted.lines:
        raise InputError(f"{names_of(sources)}: there is no line to score; check the path")


def _scored(  # noqa: PLR0917
    opened: OpenedRun,
    rows: Rows,
    record: np.dtype,
    predicted: Predicted,
    report: Report,
    rejects: RejectsSink | None,
) -> Iterator[ScoredBatch]:
    """Those of further lines; `predicted` is brought up to date with them."""
    total = rows.total()
    with opened.learner.answering() as model, torch.no_grad():
        for batch in rows.batches(opened, lines=predicted.lines, rows=predicted.rows, rejects=rejects):
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
            yield ScoredBatch(records, count, batch.rejects_bytes)
            report(predicted, total)


def _target(given: str, *, force: bool) -> Path:
    out = _local(given, "--out")
    if out.suffix not in OUT_KINDS:
        raise InputError(f"{out}: end its name in {' or '.join(OUT_KINDS)}, or give - for standard output")
    return _writable(out, "--out", force=force)


def _rejects_target(given: str, rows: LogRows | SplitRows, out: Path | None, *, force: bool) -> Path:
    if isinstance(rows, SplitRows):
        raise InputError("--rejects is of logs: lines that are no rows are not in a data folder; leave it out")
    if given == STANDARD_OUTPUT:
        raise InputError("--rejects - is no file; name one")
    path = _local(given, "--rejects")
    if out is not None and path.absolute() == out.absolute():
        raise InputError(f"--rejects {path} is --out as well; give it a file of its own")
    left = None if out is None else Leftover.beside(out)
    own = left is not None and left.ending and left.identity.get("rejects") == str(path.absolute())
    return _writable(path, "--rejects", force=force or own)


def _refuse_to_replace_source(path: Path, rows: LogRows | SplitRows) -> None:
    """Raises: InputError if the file is one of those that are scored, which `--force` is not meant for."""
    local = [Path(unquote(each.removeprefix("file://"))) if is_remote(each) else Path(each) for each in rows.files()]
    if path.resolve() in (each.resolve() for each in local):
        raise InputError(f"{path} is among what is to be scored, and would be replaced; give another file")


def _local(given: str, option: str) -> Path:
    if is_remote(given):
        raise InputError(f"{option} {without_secrets(given)} is a URI; name a local file, and copy it there after that")
    return Path(given)


def _writable(path: Path, option: str, *, force: bool) -> Path:
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: {path.absolute().parent} is no folder; make it, or give another {option}")
    if path.is_dir() or (path.exists() and not force):
        raise InputError(f"{path} is there already; give another {option}, or --force to replace it")
    return path
