"""Whether the lines of a log have the label column, told from its first ones."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.encode import Counts, make_group, make_layout, make_rejects, make_scratch, parse
from pipeline.errors import InputError
from pipeline.schema import LogFormat
from pipeline.source import Block, LineReader, Source, after_newlines

TOLD_BY_LINES = 1000
"""Of a source; those beyond change nothing."""
CLEAR = 3
"""So many times more lines must say one thing than the other, since a field too few makes a labelled line look bare."""


def labels_in(block: Block, sources: Iterable[Source], log_format: LogFormat) -> bool:
    """Whether lines have the label: `block` is the first of the first of `sources`.

    As their numbers of fields say; where these differ, as the lines say that are rows with it, or without. The first
    source that says anything decides. Of a header only its number of names counts, as they are compared later.
    Raises: InputError where nothing says it, or lines say both.
    """
    first, *others = sources
    told = _told(block, first, log_format)
    for source in others:
        if told is not None or log_format.header:
            break
        with LineReader(source, log_format) as reader:
            beginning = next(iter(reader), None)
            told = None if beginning is None else _told(beginning, source, log_format)
    if told is not None:
        return told
    fields = _fields(block, 1, log_format)[0]
    raise InputError(
        f"{first.named}: its first line has {fields} field{'s' * (fields != 1)}, and neither it nor any near it has "
        f"the {len(log_format.columns)} of format {log_format.name!r}, or {len(log_format.columns) - 1} without the "
        "label; give lines of the run's format, or say with --labels whether they have labels"
    )


def _told(block: Block, source: Source, log_format: LogFormat) -> bool | None:
    """What the first lines of a source say; None for nothing."""
    lines = 1 if log_format.header else TOLD_BY_LINES
    bare = log_format.without_label()
    counts = [_fields(block, lines, log_format).count(len(each.columns)) for each in (log_format, bare)]
    if all(counts):
        rows = [_rows(block, lines, each) for each in (log_format, bare)]
        counts = rows if any(rows) else counts
    labelled, unlabelled = counts
    if max(counts) == 0:
        return None
    if max(counts) < CLEAR * min(counts):
        raise InputError(
            f"{source.named}: of its first lines {labelled:,} fit format {log_format.name!r} with the label and "
            f"{unlabelled:,} without; say with --labels whether they have labels, and the others are rejected"
        )
    return labelled > unlabelled


def _fields(block: Block, lines: int, log_format: LogFormat) -> list[int]:
    """How many fields each of the first `lines` lines has."""
    stop, _ = after_newlines(block.buffer, block.start, block.stop, lines)
    delimiter = log_format.delimiter.encode()
    return [line.count(delimiter) + 1 for line in block.buffer[block.start : stop].tobytes().split(b"\n")[:-1]]


def _rows(block: Block, lines: int, log_format: LogFormat) -> int:
    """How many of the first `lines` lines are rows of the format."""
    stop, _ = after_newlines(block.buffer, block.start, block.stop, lines)
    _, rows, _, _ = parse(
        block.buffer,
        block.start,
        stop,
        make_layout(log_format),
        make_group(log_format, lines + 1),
        0,
        Counts(log_format).tally,
        make_rejects(lines + 1),
        make_scratch(log_format),
    )
    return rows
