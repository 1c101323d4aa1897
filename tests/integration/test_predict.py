"""predict: the scores of a split, of the log it was made of and of that log without labels are the same bits."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.schema import CRITEO
from tests.faults.small_disk import fill, small_file_system
from tests.trained import Trained, same_floats, scores_in
from trainer.cli import main
from trainer.job import EVALUATION_BATCH_ROWS
from trainer.serving import evaluate_run, open_run
from trainer.serving.scores import KeptScores


def predict(trained: Trained, *arguments: object) -> int:
    return trained.predict(*arguments)


def test_a_split_its_lines_and_its_lines_without_labels_have_the_same_scores(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain, packed, in several files, and from standard input; loss and AUC are those of evaluate."""
    data, log = trained.data, trained.lines[:9600]  # the training split: more rows than one pass has
    assert predict(trained, data, "--split", "train", "--out", tmp_path / "split.parquet", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    _, evaluation = evaluate_run(trained.run, split="train", rows=None, data=None)
    assert (told["lines"], told["rows"], told["rejected_lines"]) == (9600, 9600, 0)
    for name in ("rows", "loss", "auc", "normalized_entropy", "calibration"):
        assert told["evaluation"][name] == getattr(evaluation, name)
    expected = scores_in(tmp_path / "split.parquet")
    (tmp_path / "plain.tsv").write_bytes(b"\n".join(log))  # no last line end
    bare = [line.split(b"\t", 1)[1] for line in log]
    (tmp_path / "bare.gz").write_bytes(gzip.compress(b"\r\n".join(bare) + b"\r\n"))
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "day_0.tsv").write_bytes(b"\n".join(log[:4000]) + b"\n")
    (parts / "day_1.tsv").write_bytes(b"\n".join(log[4000:]) + b"\n")
    for name, labelled in (("plain.tsv", True), ("bare.gz", False), ("parts", True)):
        assert predict(trained, tmp_path / name, "--out", tmp_path / f"{name}.parquet", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert same_floats(scores_in(tmp_path / f"{name}.parquet"), expected), name
        assert found["evaluation"] == (told["evaluation"] if labelled else None), name
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(bare))))
    assert predict(trained, "-", "--out", "-") == 0
    text = capsys.readouterr().out
    assert same_floats(np.array(text.split(), np.float32), expected)
    assert predict(trained, tmp_path / "plain.tsv", "--out", tmp_path / "scores.csv") == 0
    header, *rest = (tmp_path / "scores.csv").read_text().splitlines()
    assert header == "probability"
    assert same_floats(np.array(rest, np.float32), expected)


def test_scores_are_what_the_averaged_model_says(trained: Trained, tmp_path: Path) -> None:
    """Against the sigmoid of the model's logits, with the averaged weights put in by hand."""
    assert predict(trained, trained.data, "--split", "test", "--out", tmp_path / "s.parquet") == 0
    opened = open_run(trained.run)
    average = {name: value for name, value in opened.checkpoint.tensors["average"].items() if name[0] != "#"}
    assert any(not torch.equal(value, opened.checkpoint.tensors["model"][name]) for name, value in average.items())
    opened.learner.model.load_state_dict(average)
    shards = pq.read_table(trained.data / "test")
    dense = np.stack([shards[name].fill_null(0).to_numpy() for name in CRITEO.dense], axis=1)
    dense = np.log(np.maximum(dense, 0).astype(np.float32).astype(np.float64) + 1)
    ids = np.stack([shards[name].to_numpy().astype(np.float32).astype(np.int64) % 1000 for name in CRITEO.sparse])
    with torch.no_grad():
        logits = opened.learner.model.eval()(torch.from_numpy(dense).float(), torch.from_numpy(ids))
    np.testing.assert_allclose(scores_in(tmp_path / "s.parquet"), torch.sigmoid(logits).numpy(), rtol=1e-5)


def test_a_line_that_is_no_row_keeps_its_place(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it stands, between passes too, and nobody else's score moves by a bit."""
    log = trained.lines[:9000]
    (tmp_path / "log.tsv").write_bytes(b"\n".join(log))
    assert predict(trained, tmp_path / "log.tsv", "--out", tmp_path / "log.parquet") == 0
    bad = {1: b"not a row", 2: b"", 8194: log[0].replace(b"\t", b" "), 8200: b"7" + log[1][1:], 9004: b"x"}
    bad |= dict.fromkeys(np.random.default_rng(0).choice(range(100, 8000), 1000, replace=False).tolist(), b"0\t1")
    mixed = list(log)
    for place, line in sorted(bad.items()):
        mixed.insert(place, line)
    (tmp_path / "mixed.tsv").write_bytes(b"\n".join(mixed) + b"\n")
    capsys.readouterr()
    for name in ("mixed.parquet", "mixed.csv"):
        assert predict(trained, tmp_path / "mixed.tsv", "--out", tmp_path / name) == 0
    said = capsys.readouterr().err
    assert "line 2: 1 fields instead of 40" in said
    assert "line 3: empty line" in said
    assert "1,005 of 10,005 lines were rejected" in said
    column = pq.read_table(tmp_path / "mixed.parquet")["probability"].combine_chunks()
    nulls = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()
    assert nulls == sorted(bad)
    assert same_floats(np.delete(column.to_numpy(zero_copy_only=False), nulls), scores_in(tmp_path / "log.parquet"))
    text = (tmp_path / "mixed.csv").read_text().splitlines()[1:]
    assert [place for place, value in enumerate(text) if value == "nan"] == nulls


def test_of_a_log_without_its_non_clicks_the_scores_are_those_of_evaluate(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers and loss are of the whole log in all three: evaluate, predict, and the model from Python."""
    config, run = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(
        f'[data]\npath = "{small_data}"\nbatch_rows = 64\n[model]\ntable_rows = 500\n[loss]\nnegatives_kept = 0.1\n'
        "[budget]\nsteps = 5\n[metrics]\nport = -1\n"
    )
    assert main(["train", str(config), "--run", str(run)]) == 0
    capsys.readouterr()
    assert main(["predict", str(run), str(small_data), "--out", str(tmp_path / "s.parquet"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    _, evaluation = evaluate_run(run, split="validation", rows=None, data=None)
    for name in ("loss", "auc", "normalized_entropy", "calibration"):
        assert told["evaluation"][name] == getattr(evaluation, name)
    opened = open_run(run)
    dense, ids = torch.rand(7, 13), torch.randint(500, (26, 7))
    with torch.no_grad():
        trained = opened.learner.model.eval()(dense, ids)
        torch.testing.assert_close(opened.model(dense, ids), trained + float(np.log(0.1)))


def test_a_log_that_holds_no_row_takes_bounded_memory(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: lines without a row are handed on as many at a time as a pass has rows."""
    kept: list[int] = []
    add = KeptScores.add
    monkeypatch.setattr(
        KeptScores, "add", lambda self, records, *others: (kept.append(len(records)), add(self, records, *others))
    )
    (tmp_path / "log.tsv").write_bytes(b"no row\n" * 100_000 + b"\n".join(trained.lines[:100]))
    assert predict(trained, tmp_path / "log.tsv", "--labels", "yes", "--out", tmp_path / "s.parquet") == 0
    assert max(kept) < 3 * EVALUATION_BATCH_ROWS
    assert np.flatnonzero(~np.isnan(scores_in(tmp_path / "s.parquet"))).tolist() == list(range(100_000, 100_100))


@pytest.mark.parametrize("pages", [1, 15, 30])
def test_a_full_disk_is_said_and_gone_on_from(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], pages: int
) -> None:
    """Full at the first lines, at later ones, and where the file itself is written."""
    (tmp_path / "log.tsv").write_bytes(b"\n".join(trained.lines[:9600]))
    assert predict(trained, tmp_path / "log.tsv", "--out", tmp_path / "whole.parquet") == 0
    with small_file_system(tmp_path / "small", mebibytes=4) as disk:
        ballast = fill(disk, leave_bytes=pages * 4096)
        capsys.readouterr()
        assert predict(trained, tmp_path / "log.tsv", "--out", disk / "s.parquet") == 74
        [line] = capsys.readouterr().err.splitlines()
        assert "s.parquet.partial cannot be written (No space left on device); make room" in line
        assert not (disk / "s.parquet").exists()
        ballast.unlink()
        assert predict(trained, tmp_path / "log.tsv", "--out", disk / "s.parquet") == 0
        assert (disk / "s.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        assert [path.name for path in disk.iterdir()] == ["s.parquet"]


def test_a_header_is_not_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a format whose label stands in the middle; with labels, without, and with names that are others."""
    (tmp_path / "format.toml").write_text(
        'name = "clicks"\ncolumns = ["n", "click", "c", "junk"]\nlabel = "click"\ndense = ["n"]\nsparse = ["c"]\n'
        'bucket_sizes = 1000\ndelimiter = ","\nheader = true\nhexadecimal = false\n'
    )
    rows = [(i % 7, i % 2, f"shop{i % 50}", "x") for i in range(3000)]
    for name, columns in (("log.csv", (0, 1, 2, 3)), ("bare.csv", (0, 2, 3)), ("other.csv", (0, 2, 1))):
        names = [("n", "click", "c", "junk")[column] for column in columns]
        lines = [names, *[[str(row[column]) for column in columns] for row in rows]]
        (tmp_path / name).write_text("".join(",".join(line) + "\n" for line in lines))
    data, run = tmp_path / "data", tmp_path / "run"
    made = ["preprocess", str(tmp_path / "log.csv"), "--out", str(data), "--format", str(tmp_path / "format.toml")]
    assert main(made) == 0
    config = tmp_path / "config.toml"
    config.write_text(
        f'[data]\npath = "{data}"\nbatch_rows = 64\n[model]\ntable_rows = 500\n[budget]\nsteps = 5\n'
        "[metrics]\nport = -1\n"
    )
    assert main(["train", str(config), "--run", str(run)]) == 0
    data.rename(tmp_path / "gone")  # the checkpoint tells how lines are encoded
    for name in ("log.csv", "bare.csv"):
        assert main(["predict", str(run), str(tmp_path / name), "--out", str(tmp_path / f"{name}.parquet")]) == 0
    assert len(scores_in(tmp_path / "log.csv.parquet")) == 3000
    assert same_floats(scores_in(tmp_path / "log.csv.parquet"), scores_in(tmp_path / "bare.csv.parquet"))
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "other.csv"), "--out", str(tmp_path / "o.parquet")]) == 2
    assert "its header names 'click' where format 'clicks' has 'junk'" in capsys.readouterr().err


WRONG: list[tuple[str, Callable[[Trained, Path], list[object]], str]] = [
    ("other-format", lambda t, p: [_log(p, b"1,2,3"), "--out", p / "s.csv"], "its first line has 1 field, and"),
    ("no-source", lambda t, p: [p / "none", "--out", p / "s.csv"], "does not exist"),
    ("empty", lambda t, p: [_log(p, b""), "--out", p / "s.csv"], "empty"),
    ("kind", lambda t, p: [_log(p, t.lines[0]), "--out", p / "s.txt"], "end its name in .parquet or .csv"),
    ("folder", lambda t, p: [_log(p, t.lines[0]), "--out", p / "no" / "s.csv"], "is no folder; make it"),
    ("there", lambda t, p: [_log(p, t.lines[0]), "--out", _log(p, b"kept", "s.csv")], "--force to replace it"),
    ("step", lambda t, p: [_log(p, t.lines[0]), "--out", p / "s.csv", "--checkpoint", "3"], "it has those of 20"),
    ("split", lambda t, p: [_log(p, t.lines[0]), "--out", p / "s.csv", "--split", "test"], "--split test is of a data"),
    ("two", lambda t, p: [t.data, _log(p, t.lines[0]), "--out", p / "s.csv"], "name it alone"),
]


def _log(folder: Path, content: bytes, name: str = "log.tsv") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(("arguments", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_use_is_one_line_and_leaves_nothing(
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Trained, Path], list[object]],
    words: str,
) -> None:
    given = arguments(trained, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert predict(trained, *given) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
