"""`preprocess --append` as a person and as a program see it, and a folder with generations under the other verbs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.logs import log_lines, write_log
from trainer.cli import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two days and, as generations, two more."""
    folder = tmp_path / "data"
    for number, rows in enumerate((300, 200, 100)):
        log = write_log(tmp_path / f"day_{number}.tsv", rows, seed=number)
        assert main(["preprocess", str(log), "--out", str(folder), "--append", "--compression", "zstd"]) == 0
    return folder


def test_what_was_added_is_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = log_lines(50, seed=7)
    lines[3] = b"no row"
    (tmp_path / "day_3.tsv").write_bytes(b"\n".join(lines))
    capsys.readouterr()
    arguments = ["preprocess", str(tmp_path / "day_*.tsv"), "--out", str(data), "--append", "--max-rejects", "1"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if "preprocess with --bucket-sizes" not in line]
    assert said == [
        f"warning: 3 of 4 files are in {data} already and left out",
        "train: day_3.tsv",
        f"{data}: generation 3 has 49 rows (train 49); 649 rows in all",
        f"warning: 1 lines were rejected; each is in {data}/rejects with its reason",
    ]
    assert main(arguments) == 0
    splits = "train 589, validation 30, test 30"
    assert f"nothing to do: {data} is complete (649 rows: {splits})" in capsys.readouterr().err


def test_what_was_added_for_programs(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "day_3.tsv", 40, seed=3)
    capsys.readouterr()
    assert main(["preprocess", str(log), "--out", str(data), "--append", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    splits = {"train": 40, "validation": 0, "test": 0}
    assert done["added"] == {"generation": 3, "rows": 40, "rejected_rows": 0, "splits": splits}
    assert (done["generations"], done["rows"], done["splits"]["train"]) == (4, 640, 580)
    assert [Path(name).name for name in done["files"]["train"]] == [f"day_{day}.tsv" for day in range(4)]
    assert main(["preprocess", str(log), "--out", str(data), "--append", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["added"], done["nothing_to_do"]) == (None, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compression", "lz4"], "was made with compression zstd, not lz4; leave the option out"),
        (["--rows-per-shard=7"], "was made with rows-per-shard 262144, not 7; leave the option out"),
        (["--format", "avazu"], "was made with another format"),
        (["--split", "days"], "--split days needs at least two files"),
    ],
)
def test_options_that_are_not_the_folders_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    """Also one that is what it is by default: it was given."""
    log = write_log(tmp_path / "day_3.tsv", 40, seed=3)
    assert main(["preprocess", str(log), "--out", str(data), "--append", *options]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_generations_are_inspected(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["generation"], row["rows"], row["train"]) for row in found["generations"]] == [
        (0, 300, 240), (1, 200, 200), (2, 100, 100),
    ]  # fmt: skip
    assert [row["created"] is None for row in found["generations"]] == [True, False, False]
    assert main(["inspect", str(data)]) == 0
    table = capsys.readouterr().out
    assert "generation" in table
    assert "train, added since: day_1.tsv, day_2.tsv" in table


def test_bounds_are_shown_where_nobody_has_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (registers,) = (data / "distinct").iterdir()
    registers.unlink()
    assert main(["verify", str(data)]) == 74
    log = write_log(tmp_path / "day_3.tsv", 40, seed=3)
    assert main(["preprocess", str(log), "--out", str(data), "--append"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(data)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["C6"]]
    _, _, least, to, most, buckets, *rates = line.split()
    assert (to, buckets) == ("to", "3")
    assert int(least) < int(most)
    assert float(rates[0]) < float(rates[2])
    assert main(["verify", str(data)]) == 0


def test_a_run_on_generations_trains_on_all_and_is_evaluated_on_the_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    sections = (f'[data]\npath = "{data}"\nbatch_rows = 32', "[model]\ntable_rows = 512", "[budget]\nepochs = 1")
    config.write_text("\n".join([*sections, "[metrics]\nport = -1\n"]))
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--split", "validation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 30
    steps = [json.loads(line) for line in (tmp_path / "run/steps.jsonl").read_text().splitlines()]
    assert 540 - 2 * 32 < steps[-1]["start"] + steps[-1]["rows"] <= 540  # 240 + 200 + 100, in whole pairs
