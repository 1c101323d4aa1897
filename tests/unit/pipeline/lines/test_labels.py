"""Whether lines have labels and weights is told from the first ones, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.lines import LineBatch, read_lines
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


WEIGHTED = LogFormat(
    name="weighed",
    columns=("label", "n", "c", "w"),
    label="label",
    dense=("n",),
    sparse=("c",),
    bucket_sizes=(100,),
    weight="w",
)
WHOLE, NO_LABEL_BUT_WEIGHT, NEITHER = "1\t5\tab\t0.5\n", "5\tab\t0.5\n", "5\tab\n"
NO_WEIGHT = "1\t5\tab\n"
"""But a label; as many fields as those with a weight and no label."""


def told_batch(
    tmp_path: Path, *texts: str, log_format: LogFormat = FORMAT, labelled: bool | None = None, batch_rows: int = 8
) -> LineBatch:
    """The first batch of files with these lines."""
    paths = [tmp_path / f"{place}.tsv" for place in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    sources = find_sources(paths).sources
    return next(read_lines(sources, log_format, batch_rows=batch_rows, table_rows=None, labelled=labelled))


def told(tmp_path: Path, *texts: str) -> bool:
    """What is told of files with these lines."""
    return told_batch(tmp_path, *texts).labelled


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


@pytest.mark.parametrize(
    ("texts", "labelled", "found"),
    [
        ([WHOLE], None, (True, True)),
        ([NO_LABEL_BUT_WEIGHT], None, (False, False)),
        ([NEITHER], None, (False, False)),
        ([NEITHER], False, (False, False)),
        ([NO_WEIGHT], False, (False, False)),  # is taken at one's word
        ([JUNK * 50 + NEITHER], None, (False, False)),
        ([JUNK * 50, JUNK, NEITHER], False, (False, False)),
        ([NO_LABEL_BUT_WEIGHT + NEITHER + 2 * CLEAR * WHOLE], None, (True, True)),
        ([WHOLE + CLEAR * NEITHER], None, (False, False)),
        ([NEITHER + CLEAR * NO_LABEL_BUT_WEIGHT], False, (False, False)),
        ([NO_WEIGHT + CLEAR * NO_LABEL_BUT_WEIGHT], None, (False, False)),
        ([NEITHER], True, (True, True)),
    ],
)
def test_the_first_lines_tell_of_label_and_weight(
    tmp_path: Path, texts: list[str], labelled: bool | None, found: tuple[bool, bool]
) -> None:
    batch = told_batch(tmp_path, *texts, log_format=WEIGHTED, labelled=labelled, batch_rows=100)
    assert (batch.labelled, batch.rows.weight is not None) == found
    # of what most lines are, all are rows
    most = max({*(line for text in texts for line in text.splitlines() if line != "junk")}, key="".join(texts).count)
    expected = 0 if labelled else sum(text.splitlines().count(most) for text in texts)
    assert len(batch.rows.label) >= expected
    if expected:
        assert set(batch.rows.dense[0].tolist()) <= {1, 5}


@pytest.mark.parametrize(
    ("texts", "labelled", "words"),
    [
        ([JUNK], None, "the 4 of format 'weighed', 3 without the label, or 2 without label and weight; give"),
        (
            [WHOLE + NO_LABEL_BUT_WEIGHT + NEITHER],
            None,
            "1 fit format 'weighed' with the label, 1 without and 1 without label and weight; say with --labels",
        ),
        (
            [NO_LABEL_BUT_WEIGHT * 2 + NEITHER],
            None,
            "2 fit format 'weighed' without the label and 1 without label and weight; give a log of one kind at a time",
        ),
        (
            [NO_LABEL_BUT_WEIGHT + NEITHER * 2],
            False,
            "1 fit format 'weighed' without the label and 2 without label and weight; give a log of one kind",
        ),
        ([NO_WEIGHT * 9], None, "9 of them may have the label and no weight 'w', which cannot be scored; give a log"),
        ([NO_WEIGHT + NO_LABEL_BUT_WEIGHT], None, "or say --labels no if they have none"),
    ],
)
def test_lines_of_several_kinds_are_refused(
    tmp_path: Path, texts: list[str], labelled: bool | None, words: str
) -> None:
    with pytest.raises(InputError, match="its first line") as raised:
        told_batch(tmp_path, *texts, log_format=WEIGHTED, labelled=labelled)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
