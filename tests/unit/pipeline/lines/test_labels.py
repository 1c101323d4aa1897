"""Whether lines have labels is told from the first ones, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.lines import read_lines
from pipeline.lines.labels import CLEAR, TOLD_BY_LINES
from pipeline.schema import LogFormat
from pipeline.source import find_sources

FORMAT = LogFormat(
    name="clicks",
    columns=("label", "n", "c"),
    label="label",
    dense=("n",),
    sparse=("c",),
    bucket_sizes=(100,),
    delimiter="\t",
    header=False,
    hexadecimal=True,
)
LABELLED, BARE, JUNK, NO_LABEL = "1\t5\tab\n", "5\tab\n", "junk\n", "x\t5\tab\n"
TRUNCATED = "0\t7\n"
"""Of a line with a label; a row without one."""


def told(tmp_path: Path, *texts: str) -> bool:
    """What is told of files with these lines."""
    paths = [tmp_path / f"{place}.tsv" for place in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return next(read_lines(find_sources(paths).sources, FORMAT, batch_rows=8, table_rows=None)).labelled


@pytest.mark.parametrize(
    ("texts", "labelled"),
    [
        ([LABELLED], True),
        ([BARE], False),
        ([JUNK * 50 + LABELLED], True),
        ([JUNK * 50 + BARE], False),
        ([TRUNCATED + CLEAR * LABELLED], True),
        ([LABELLED + CLEAR * BARE], False),
        ([NO_LABEL * 20 + "x\ty\n" * 5], True),  # of no rows at all, by the fields
        ([NO_LABEL * 20 + BARE], False),  # the only row of both
        ([JUNK, JUNK, BARE], False),
        ([LABELLED, BARE * 100], True),  # the first that tells
        ([LABELLED * TOLD_BY_LINES + BARE * 10 * TOLD_BY_LINES], True),
    ],
)
def test_the_first_lines_tell(tmp_path: Path, texts: list[str], labelled: bool) -> None:
    assert told(tmp_path, *texts) is labelled


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([JUNK * 3], "its first line has 1 field, and neither it nor any near it has the 3 of format 'clicks', or 2"),
        ([JUNK * TOLD_BY_LINES + LABELLED], "or say with --labels whether they have labels"),
        ([TRUNCATED + (CLEAR - 1) * LABELLED], "of its first lines 2 fit format 'clicks' with the label and 1 without"),
        ([LABELLED + BARE], "of its first lines 1 fit format 'clicks' with the label and 1 without; say with --labels"),
    ],
)
def test_what_they_do_not_tell_is_asked_for(tmp_path: Path, texts: list[str], words: str) -> None:
    with pytest.raises(InputError, match="its first line") as raised:
        told(tmp_path, *texts)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
