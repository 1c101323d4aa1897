"""predict: rejected lines as preprocess writes them, data folders at a URI, and damaged rows."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards import Manifest
from tests.trained import Trained, same_floats, scores_in
from trainer.cli import main


@pytest.fixture
def mixed(trained: Trained, tmp_path: Path) -> Path:
    """Two files of 3,000 lines and some that are no rows: of several kinds, first, last and in between."""
    folder = tmp_path / "log"
    folder.mkdir()
    for day in range(2):
        lines = trained.lines[3000 * day : 3000 * (day + 1)]
        bad = {0: b"no row", 7: b"", 1999: b"7" + lines[0][1:], 2500: lines[1].replace(b"\t", b" "), 3004: b"0\t1\xff"}
        for place, line in sorted(bad.items()):
            lines.insert(place, line)
        (folder / f"day_{day}.tsv").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def test_rejected_lines_are_written_as_preprocess_does(
    trained: Trained, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the same bytes; beside scores on standard output too; an empty file where there are none."""
    assert main(["preprocess", str(mixed), "--out", str(tmp_path / "data"), "--max-rejects", "50"]) == 0
    expected = b"".join(path.read_bytes() for path in sorted((tmp_path / "data" / "rejects").iterdir()))
    assert expected.count(b"\n") == 10
    out, rejects = tmp_path / "s.parquet", tmp_path / "r.tsv"
    capsys.readouterr()
    assert trained.predict(mixed, "--out", out, "--rejects", rejects) == 0
    assert rejects.read_bytes() == expected
    assert f"10 of 6,010 lines were rejected; they have no probability, and are in {rejects}" in capsys.readouterr().err
    numbers = [int(line.split(b"\t")[1]) for line in expected.splitlines()]
    places = [number - 1 + 3005 * (line >= 5) for line, number in enumerate(numbers)]
    assert np.flatnonzero(np.isnan(scores_in(out))).tolist() == places

    assert trained.predict(mixed, "--out", "-", "--rejects", tmp_path / "r2.tsv") == 0
    assert (tmp_path / "r2.tsv").read_bytes() == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(trained.lines[0])))
    assert trained.predict("-", "--out", "-", "--rejects", tmp_path / "none.tsv") == 0
    assert (tmp_path / "none.tsv").read_bytes() == b""
    assert not list(tmp_path.glob("*.tmp"))


WRONG: list[tuple[str, Callable[[Trained, Path, Path], list[object]], str]] = [
    ("there", lambda t, log, p: [log, "--rejects", log / "day_0.tsv"], "day_0.tsv is there already; give another"),
    ("out", lambda t, log, p: [log, "--rejects", p / "s.parquet"], "s.parquet is --out as well; give it a file"),
    ("output", lambda t, log, p: [log, "--rejects", "-"], "--rejects - is no file; name one"),
    ("folder", lambda t, log, p: [log, "--rejects", p / "no" / "r"], "is no folder; make it, or give another"),
    ("data", lambda t, log, p: [t.data, "--rejects", p / "r"], "are not in a data folder; leave it out"),
    ("uri", lambda t, log, p: [log, "--rejects", "s3://a:b@c/r"], "--rejects s3://c/r is a URI; name a local file"),
    ("log", lambda t, log, p: [log.as_uri(), "--split", "test"], "/log is not a data folder (it has no manifest.json)"),
    ("two", lambda t, log, p: [t.data, log.as_uri()], "is a data folder, which is scored by itself; name it alone"),
]


@pytest.mark.parametrize(("arguments", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_use_is_one_line_and_leaves_nothing(
    trained: Trained,
    mixed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    arguments: Callable[[Trained, Path, Path], list[object]],
    words: str,
) -> None:
    assert trained.predict(*arguments(trained, mixed, tmp_path), "--out", tmp_path / "s.parquet") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_first_line_that_is_no_row_needs_no_labels_option(
    trained: Trained, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With labels, without, and where only a second file tells."""
    log = mixed / "day_0.tsv"
    assert trained.predict(log, "--labels", "yes", "--out", tmp_path / "yes.parquet") == 0
    lines = log.read_bytes().splitlines()
    lines[1999] = b"no row"  # only its label was wrong
    (tmp_path / "bare.tsv").write_bytes(b"\n".join(line.split(b"\t", 1)[-1] for line in lines))
    (tmp_path / "junk.tsv").write_bytes(b"no row\n")
    for name, sources in (
        ("labelled", [log]),
        ("bare", [tmp_path / "bare.tsv"]),
        ("two", [tmp_path / "junk.tsv", log]),
    ):
        assert trained.predict(*sources, "--out", tmp_path / f"{name}.parquet") == 0
        found, expected = scores_in(tmp_path / f"{name}.parquet"), scores_in(tmp_path / "yes.parquet")
        rows = ~np.isnan(expected)
        assert same_floats(found[name == "two" :][rows], expected[rows]), name
    (tmp_path / "both.tsv").write_bytes(b"\n".join([*lines[1:9], *(line.split(b"\t", 1)[-1] for line in lines[9:20])]))
    capsys.readouterr()
    assert trained.predict(tmp_path / "both.tsv", "--out", tmp_path / "both.parquet") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "of its first lines 7 fit format 'criteo' with the label and 11 without; say with --labels whether" in line


def test_a_folder_at_a_uri_is_scored_as_the_local_one(trained: Trained, tmp_path: Path) -> None:
    options = ["--split", "test", "--out"]
    assert trained.predict(trained.data, *options, tmp_path / "near.parquet") == 0
    assert trained.predict(trained.data.as_uri(), *options, tmp_path / "far.parquet") == 0
    assert (tmp_path / "near.parquet").read_bytes() == (tmp_path / "far.parquet").read_bytes()
    assert trained.predict(trained.data.as_uri(), "--out", tmp_path / "validation.parquet") == 0
    assert len(scores_in(tmp_path / "validation.parquet")) == Manifest.load(trained.data).splits["validation"].rows


def test_damaged_rows_are_named_with_what_helps(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No setting of training does."""
    data = shutil.copytree(trained.data, tmp_path / "data")
    shard = data / Manifest.load(data).splits["test"].shards[0].path
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 255
    shard.write_bytes(content)
    predicted = [str(data), "--split", "test", "--out", str(tmp_path / "s.parquet")]
    for arguments in (["predict", str(trained.run), *predicted], ["evaluate", str(trained.run), *predicted[1:3]]):
        command = arguments if arguments[0] == "predict" else [*arguments, "--data", str(data)]
        capsys.readouterr()
        assert main(command) == 74
        [line] = capsys.readouterr().err.splitlines()
        assert "part-00000.parquet: row group 0 cannot be read (" in line
        assert "restore it from a copy (`alphastream verify` on the data lists all that is damaged)" in line
        assert "data.damaged" not in line
        assert ("or score the log that it was made of" in line) == (arguments[0] == "predict")
    assert not (tmp_path / "s.parquet").exists()


def test_what_is_scored_is_never_replaced(
    trained: Trained, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = shutil.copy(mixed / "day_0.tsv", tmp_path / "log.csv")
    content = Path(log).read_bytes()
    (tmp_path / "link.csv").symlink_to(log)
    data = shutil.copytree(trained.data, tmp_path / "data")
    shard = data / Manifest.load(data).splits["test"].shards[0].path
    whole = shard.read_bytes()
    for arguments in (
        [log, "--out", log],
        [log, "--out", tmp_path / "link.csv"],
        [tmp_path / "link.csv", "--out", log],
        [Path(log).as_uri(), "--out", log],
        [log, "--out", tmp_path / "s.csv", "--rejects", log],
        [data, "--split", "test", "--out", shard],
        [data.as_uri(), "--split", "test", "--out", shard],
    ):
        capsys.readouterr()
        assert trained.predict(*arguments, "--force") == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "is among what is to be scored" in line
        assert Path(log).read_bytes() == content
        assert shard.read_bytes() == whole
    capsys.readouterr()
    assert trained.predict(data, "--split", "test", "--out", data / "scores.csv") == 0  # a new file replaces none
