"""Which columns the lines of a log have, with or without the label, told from its first ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipeline.encode import Counts, make_group, make_layout, make_rejects, make_scratch, parse
from pipeline.errors import InputError
from pipeline.schema import LogFormat
from pipeline.source import Block, LineReader, Source, after_newlines

TOLD_BY_LINES = 1000
"""Of a source; those beyond change nothing."""
CLEAR = 3
"""So many times more lines must say one thing than any other, since a field too few makes a labelled line look bare."""


def format_in(block: Block, sources: Iterable[Source], log_format: LogFormat, labelled: bool | None) -> LogFormat:
    """The format of the lines: `log_format`, or the same without the label, or without label and weight; `block` is the
    first of the first of `sources`, and `labelled` says whether they have the label, or nothing.

    As their numbers of fields say; where these differ, as the lines say that are rows of each. The first source that
    says anything decides. Of a header only its number of names counts, as they are compared later.
    Raises: InputError where lines say more than one thing, or, without `labelled`, nothing.
    """
    if labelled:
        return log_format
    formats = [log_format.without_label()]
    if log_format.weight:
        formats.append(log_format.without_label(without_weight=True))
    if labelled is None:
        formats.insert(0, log_format)
    elif len(formats) == 1:
        return formats[0]
    first, *others = sources
    told = _told(block, first, log_format, formats)
    for source in others:
        if told is not None or log_format.header:
            break
        with LineReader(source, log_format) as reader:
            beginning = next(iter(reader), None)
            told = None if beginning is None else _told(beginning, source, log_format, formats)
    if told is not None:
        return told
    if labelled is False:
        return formats[0]
    fields = _fields(block, 1, log_format)[0]
    whole = len(log_format.columns)
    either = f", or {whole - 1} without the label"
    if log_format.weight:
        either = f", {whole - 1} without the label, or {whole - 2} without label and weight"
    raise InputError(
        f"{first.named}: its first line has {fields} field{'s' * (fields != 1)}, and neither it nor any near it has "
        f"the {whole} of format {log_format.name!r}{either}; give lines of the run's format, or say with --labels "
        "whether they have labels"
    )


def _told(block: Block, source: Source, log_format: LogFormat, formats: list[LogFormat]) -> LogFormat | None:
    """Which of `formats` the first lines of a source are of; None if they do not say."""
    lines = 1 if log_format.header else TOLD_BY_LINES
    fields = _fields(block, lines, log_format)
    counts = [fields.count(len(each.columns)) for each in formats]
    if sum(map(bool, counts)) > 1:
        rows = [_rows(block, lines, each) for each in formats]
        counts = rows if any(rows) else counts
    most = max(counts)
    if most == 0:
        return None
    told = formats[counts.index(most)]
    said = [each for each, count in zip(formats, counts, strict=True) if count and most < CLEAR * count]
    if len(said) > 1:
        raise InputError(
            f"{source.named}: of its first lines {_listed(counts, formats, log_format)}; "
            + (
                "say with --labels whether they have labels, and the others are rejected"
                if log_format in said
                else "give a log of one kind at a time"
            )
        )
    if log_format in formats and told.label != log_format.label:
        _refuse_unweighted(block, source, log_format, told, most)
    return told


def _refuse_unweighted(block: Block, source: Source, log_format: LogFormat, told: LogFormat, lines: int) -> None:
    """Lines with the label and without the weight have as many fields as those with the weight and without the label,
    where no header names them.

    Raises: InputError if the lines may be these.
    """
    if log_format.header or not log_format.weight or len(told.columns) != len(log_format.columns) - 1:
        return
    columns = tuple(name for name in log_format.columns if name != log_format.weight)
    unweighted = _rows(block, TOLD_BY_LINES, replace(log_format, weight="", columns=columns))
    if lines < CLEAR * unweighted:
        raise InputError(
            f"{source.named}: its first lines have a field less than format {log_format.name!r}, and {unweighted:,} of "
            f"them may have the label and no weight {log_format.weight!r}, which cannot be scored; give a log with "
            "both, or say --labels no if they have none"
        )


def _listed(counts: list[int], formats: list[LogFormat], log_format: LogFormat) -> str:
    """How many lines are of each format that any is of."""
    texts = []
    for count, each in zip(counts, formats, strict=True):
        if each is log_format:
            lacks = "with the label"
        elif len(each.columns) == len(log_format.columns) - 1:
            lacks = "without" if texts and log_format in formats else "without the label"
        else:
            lacks = "without label and weight"
        if count:
            texts.append(f"{count:,} {lacks}" if texts else f"{count:,} fit format {log_format.name!r} {lacks}")
    *some, last = texts
    return f"{', '.join(some)} and {last}"


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
