"""The verbs on logs and data folders as a person and as a program see them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.preprocess import Progress
from tests.logs import log_lines, write_log
from trainer.cli import data_progress as logs
from trainer.cli import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    log = write_log(tmp_path / "log.tsv", 100)
    assert main(["preprocess", str(log), "--out", str(tmp_path / "data")]) == 0
    return tmp_path / "data"


def test_preprocess_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result on standard output; on standard error nothing but progress, each line an object."""
    monkeypatch.setattr(logs, "JSON_LINE_SECONDS", 0.0)
    lines = log_lines(100)
    lines[3] = b"no row"
    (tmp_path / "log.tsv").write_bytes(b"\n".join([*lines, b""]))
    arguments = ["preprocess", str(tmp_path / "log.tsv"), "--out", str(tmp_path / "data"), "--json"]
    assert main([*arguments, "--max-rejects", "1"]) == 0
    out, err = capsys.readouterr()
    done = json.loads(out)
    assert (done["rows"], done["rejected_rows"], done["nothing_to_do"]) == (99, 1, False)
    assert done["splits"] == {"train": 79, "validation": 10, "test": 10}
    last: dict[str, Any] = [json.loads(line) for line in err.splitlines()][-1]
    assert (last["rows"], last["rejected_rows"], last["bytes"]) == (99, 1, last["total_bytes"])
    assert last["seconds_left"] == 0
    assert last["rows_per_second"] == pytest.approx(99 / last["seconds"])


def test_an_error_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["preprocess", str(tmp_path / "none.tsv"), "--out", str(tmp_path / "data"), "--json"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["exit_code"] == 2
    assert err == f"alphastream: {found['error']}\n"
    assert "none.tsv does not exist" in found["error"]


def progress(**values: Any) -> Progress:
    usual: dict[str, Any] = {"stage": "encoding", "rows": 3000, "rejected_rows": 0, "bytes": 6_000_000}
    usual |= {"total_bytes": 16_000_000, "seconds": 2.0, "resumed_rows": 1000, "resumed_bytes": 2_000_000}
    return Progress(**(usual | values))


def test_speed_and_time_left_are_of_this_run_alone() -> None:
    seen = progress()
    assert (seen.rows_per_second, seen.bytes_per_second, seen.seconds_left) == (1000.0, 2e6, 5.0)
    assert progress(total_bytes=None).seconds_left is None
    assert progress(stage="counting lines").seconds_left is None
    assert progress(rows=1000, bytes=2_000_000).seconds_left is None


def test_a_dry_run_says_what_it_would_take_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path / "log.tsv", 100)
    arguments = ["preprocess", str(log), "--out", str(tmp_path / "data"), "--dry-run", "--workers", "2"]
    assert main(arguments) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["sources"].startswith(str(log))
    assert said["rows"] == "about 100 (split tail: train 80, validation 10, test 10)"
    assert said["shards"] == "about 3 of up to 262,144 rows"
    assert said["speed"].endswith(" rows/s on 2 workers")
    assert said["disk"].endswith(" MB are free")
    assert said["time"].startswith("about 0:00:0")
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"train": 80, "validation": 10, "test": 10}
    assert [path.name for path in tmp_path.iterdir()] == ["log.tsv"]
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    assert main(arguments) == 0
    assert "warning: the shards would need" in capsys.readouterr().err


def test_inspect_shows_what_applies_to_each_kind_of_column(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", str(data)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["rows", "100"] in shown
    header = ["column", "missing", "rate", "minimum", "maximum", "mean"]
    integers = shown[shown.index(header) + 2 :][:13]
    header = ["column", "missing", "rate", "distinct", "buckets", "collision", "rate"]
    categories = shown[shown.index(header) + 2 :][:26]
    assert main(["inspect", str(data), "--json"]) == 0
    columns = json.loads(capsys.readouterr().out)["columns"]
    assert [row[0] for row in integers + categories] == [column["column"] for column in columns]
    assert [float(row[1]) for row in integers + categories] == [column["missing_rate"] for column in columns]
    assert [int(row[3].replace(",", "")) for row in integers] == [column["maximum"] for column in columns[:13]]
    assert [int(row[2]) for row in categories] == [column["distinct"] for column in columns[13:]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A folder of three days, the last with one class, and two files that are not days."""
    (tmp_path / "log").mkdir()
    for day, name in enumerate(("day_9.tsv", "day_10.TSV", "day_11.tsv")):
        write_log(tmp_path / "log" / name, 40, seed=day)
    last = tmp_path / "log/day_11.tsv"
    last.write_bytes(b"".join(b"0" + line[1:] + b"\n" for line in log_lines(40, seed=2)))
    (tmp_path / "log/day_12.bak").write_bytes(b"")
    return tmp_path / "log"


def test_which_files_train_validate_and_test_is_said_beforehand(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["preprocess", str(log), "--out", str(log.parent / "data")]
    files = [
        "train: day_9.tsv, day_10.TSV",
        "validation: day_11.tsv (its end)",
        "test: day_11.tsv (its beginning)",
    ]
    left_out = f"warning: {log}: left out day_12.bak (a folder's log files have no ending, .tsv, "
    assert main([*arguments, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-3:] == files
    assert err.startswith(left_out)
    assert main(arguments) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(left_out)
    assert said[1:4] == files
    assert main(["inspect", str(log.parent / "data")]) == 0
    assert set(files) <= set(capsys.readouterr().out.splitlines())


def test_which_files_train_validate_and_test_for_programs(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(log / name) for name in ("day_9.tsv", "day_10.TSV", "day_11.tsv")]
    expected = {"train": names[:2], "validation": names[2:], "test": names[2:]}
    arguments = ["preprocess", str(log), "--out", str(log.parent / "data"), "--json"]
    assert main([*arguments, "--dry-run"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert forecast["files"] == expected
    assert "day_12.bak" in forecast["notices"][0]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert json.loads(err.splitlines()[0])["files"] == expected
    assert json.loads(out)["files"] == expected
    assert "day_12.bak" in json.loads(out)["warnings"][0]
    assert main(["inspect", str(log.parent / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == expected


def test_splits_that_nothing_can_be_judged_by_are_said(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (log / "day_12.tsv").write_bytes(log_lines(1, seed=3)[0] + b"\n")
    out = str(log.parent / "data")
    assert main(["preprocess", str(log), "--out", out]) == 0
    said = capsys.readouterr().err
    assert "warning: split test has no rows; give it a log that has some, or another --split\n" in said
    assert "warning: every row of split validation has label " in said
    assert main(["inspect", out]) == 0
    assert "warning: split test has no rows" in capsys.readouterr().err
    assert main(["inspect", out, "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert [text[:22] for text in warnings][:2] == ["split test has no rows", "every row of split val"]


def test_training_says_which_splits_have_one_class(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, config = log.parent / "data", log.parent / "config.toml"
    assert main(["preprocess", str(log), "--out", str(data)]) == 0
    settings = "batch_rows = 8\n[model]\ntable_rows = 64\n[budget]\nsteps = 2\n[metrics]\nport = -1\n"
    config.write_text(f'[data]\npath = "{data}"\n{settings}')
    capsys.readouterr()
    assert main(["train", str(config), "--run", str(log.parent / "run")]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    for split in ("validation", "test"):
        assert (
            f"warning: {data}: every row of split {split} has label 0, so there is nothing to tell apart; "
            in "".join(warnings)
        )
    assert not any("split train" in line for line in warnings)


def test_many_collisions_are_said_with_a_remedy_that_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    rows = (f"{i % 2},{i},{i % 3}\n" for i in range(3000))
    log.write_text("click,many,few\n" + "".join(rows))
    described = tmp_path / "f.toml"
    described.write_text(
        'columns=["click","many","few"]\nlabel="click"\nsparse=["many","few"]\nbucket_sizes=[500, 1000]\n'
        'delimiter=","\nheader=true\nhexadecimal=false'
    )
    arguments = ["preprocess", str(log), "--format", str(described)]
    assert main([*arguments, "--out", str(tmp_path / "crowded")]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    # 3000 values in 500 buckets fill 500 (1 - (1 - 1/500)^3000) = 498.8 of them; `few` is not named
    share = re.search(r"share a bucket with another in 1 column \(many (.*)%\);", warning)
    assert share
    assert float(share[1]) == pytest.approx(100 * (1 - 498.8 / 3000), abs=0.5)  # distinct values are estimated
    assert warning.endswith("preprocess with --bucket-sizes 1000000")
    assert main([*arguments, "--out", str(tmp_path / "roomy"), "--bucket-sizes", "1000000"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "crowded")]) == 0
    assert warning in capsys.readouterr().err.splitlines()


def test_verify_for_persons_and_programs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["verify", str(data)]) == 0
    assert capsys.readouterr().out == f"{data}: all 3 shards are whole (100 rows)\n"
    assert main(["verify", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(data),
        "whole": True,
        "shards": 3,
        "rows": 100,
        "readable_rows": 100,
        "found": [],
    }
    (data / "test/part-00000.parquet").unlink()
    assert main(["verify", str(data)]) == 74
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test/part-00000.parquet is missing; 0 of its 10 rows can be read"
    assert lines[1].startswith(f"{data}: 1 of 3 shards are damaged; 90 of 100 rows can be read")
    assert main(["verify", str(data), "--json"]) == 74
    found = json.loads(capsys.readouterr().out)
    assert (found["whole"], found["readable_rows"], found["found"]) == (False, 90, lines[:1])


@pytest.mark.parametrize("name", ["log.tsv", ".", "nowhere"])
def test_verifying_what_is_neither_data_nor_run(data: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["verify", str(data.parent / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("give a data folder or a run directory")


def test_a_reader_that_has_enough_is_no_error(data: Path) -> None:
    """As in `alphastream inspect DATA --json | head`: the pipe is closed before anything is written to it."""
    code = "import sys; sys.stdin.read(); from trainer.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "inspect", str(data)]
    pipe, root = subprocess.PIPE, Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
