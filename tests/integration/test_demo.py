"""The main job on generated logs: nothing is amiss with them, and a folder of an earlier version is continued."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.sample import SampleConfig, write_sample
from pipeline.shards import Manifest
from trainer.cli import main

ROWS = 3000
OPTIONS = ["--rows", str(ROWS), "--port", "-1"]


def test_the_demo_has_nothing_to_warn_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), *OPTIONS]) == 0
    said = capsys.readouterr().err
    assert "2/4 preprocess" in said
    assert "share a bucket" not in said
    columns = Manifest.load(tmp_path / "data").statistics["columns"]
    assert max(values.get("collision_rate") or 0.0 for values in columns.values()) < 0.1
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_shards_of_an_earlier_version_keep_their_format(tmp_path: Path) -> None:
    write_sample(SampleConfig(out=tmp_path / "logs", rows=ROWS, days=5))
    preprocess(PreprocessConfig(sources=(str(tmp_path / "logs"),), out=tmp_path / "data", format="criteo"))
    assert main(["demo", "--out", str(tmp_path), *OPTIONS]) == 0
    assert Manifest.load(tmp_path / "data").format.name == "criteo"
