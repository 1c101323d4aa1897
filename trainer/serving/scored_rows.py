"""What is to be scored: the lines of a log, or the rows of a split of a data folder, as batches with their places."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.addresses import is_remote, without_secrets
from pipeline.device import ModelInputs, open_lines, open_rows
from pipeline.errors import InputError
from pipeline.lines import RejectedLine, RejectsSink
from pipeline.shards import MANIFEST, Manifest, is_data_folder
from pipeline.source import Source, find_sources
from trainer.job import EVALUATION_BATCH_ROWS
from trainer.serving.opened import OpenedRun, damage_explained


class ScoringBatch(NamedTuple):
    """Lines, and what the model is asked about them."""

    lines: int
    places: NDArray[np.int64] | slice
    """Of the rows among the lines."""
    inputs: ModelInputs | None
    labelled: bool
    examples: Sequence[RejectedLine] = ()
    rejects_bytes: int = 0
    """What was written of the lines that are no rows."""


class Rows(Protocol):
    """What is to be scored."""

    def files(self) -> list[str]:
        """The files that it is read from, as paths or URIs."""
        ...

    def identity(self) -> dict[str, Any]:
        """What scores of it can only be continued with; JSON values."""
        ...

    def total(self) -> int | None:
        """Lines, if they are known."""
        ...

    def batches(
        self, opened: OpenedRun, *, lines: int, rows: int, rejects: RejectsSink | None
    ) -> Iterator[ScoringBatch]:
        """From line `lines` on, before which there were `rows` rows; what is no row is written to `rejects`."""
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

    def files(self) -> list[str]:
        return [source.address for source in self.sources]

    def identity(self) -> dict[str, Any]:
        values = {
            "sources": [[each.address, each.size, each.modified_ns] for each in self.sources],
            "labelled": self.labelled,
        }
        # what was read of standard input is not to be told from what another call reads
        return values | ({"once": uuid.uuid4().hex} if self.sources[0].is_standard_input else {})

    def total(self) -> int | None:
        return None

    def negative_weight(self, opened: OpenedRun) -> float:
        return opened.learner.loss.evaluated_negative_weight

    def batches(
        self, opened: OpenedRun, *, lines: int, rows: int, rejects: RejectsSink | None
    ) -> Iterator[ScoringBatch]:
        found = open_lines(
            self.sources,
            opened.log_format,
            table_rows=opened.learner.table_rows,
            device=opened.learner.device,
            batch_rows=EVALUATION_BATCH_ROWS,
            labelled=self.labelled,
            skip_lines=lines,
            rejects=rejects,
        )
        for batch, inputs in found:
            yield ScoringBatch(batch.lines, batch.places(), inputs, batch.labelled, batch.examples, batch.rejects_bytes)

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

    def files(self) -> list[str]:
        shards = [shard.path for split in self.manifest.splits.values() for shard in split.shards]
        return [f"{self.path.rstrip('/')}/{name}" for name in (MANIFEST, *shards)]

    def identity(self) -> dict[str, Any]:
        return {"shards": [shard.sha256 for shard in self.manifest.splits[self.split].shards]}

    def total(self) -> int | None:
        return self.manifest.splits[self.split].rows

    def negative_weight(self, opened: OpenedRun) -> float:
        return opened.learner.negative_weight(self.manifest, self.split)

    def batches(
        self, opened: OpenedRun, *, lines: int, rows: int, rejects: RejectsSink | None
    ) -> Iterator[ScoringBatch]:
        found = open_rows(
            replace(opened.config.data, path=self.path, damaged="fail"),
            self.manifest,
            table_rows=opened.learner.table_rows,
            device=opened.learner.device,
            split=self.split,
            batch_rows=EVALUATION_BATCH_ROWS,
            first_row=rows,
        )
        with damage_explained(", or score the log that it was made of"):
            for inputs in found:
                yield ScoringBatch(inputs.rows, slice(None), inputs, True)

    def refuse_changed(self) -> None:
        """Its shards never change, and are checked as they are read."""


def rows_of(
    sources: Sequence[str],
    split: str | None,
    labelled: bool | None,
    data: str | None,
    warn: Callable[[str], None],
) -> tuple[LogRows | SplitRows, Manifest | None]:
    """What is to be scored, and the data folder whose format it has, if one is named; `warn` is told of files that were
    left out.

    Raises: InputError for names that stand for nothing, or not for one kind.
    """
    far = len(sources) > 1  # then a URI is no data folder, and is not asked for
    folder = next((each for each in sources if not (far and is_remote(each)) and is_data_folder(each)), None)
    if folder is None and split is not None and len(sources) == 1 and is_remote(sources[0]):
        folder = sources[0]  # is meant to be one, and says itself why it is none
    if folder is not None:
        if len(sources) > 1:
            raise InputError(f"{names_of([folder])} is a data folder, which is scored by itself; name it alone")
        manifest = Manifest.load(folder)
        return SplitRows(manifest=manifest, path=folder, split=split or "validation"), manifest
    if split is not None:
        raise InputError(f"--split {split} is of a data folder, and {names_of(sources)} are logs; leave it out")
    found = find_sources(sources)
    for notice in found.notices:
        warn(notice)
    return LogRows(sources=tuple(found.sources), labelled=labelled), Manifest.load(data) if data else None


def names_of(sources: Sequence[str]) -> str:
    """Sources as they may be shown."""
    return ", ".join(without_secrets(each) for each in sources)
