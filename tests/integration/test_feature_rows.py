"""Tables of features' own sizes: trained, predicted and exported alike; sizes that do not fit are refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import open_split
from pipeline.errors import InputError
from tests.weighted_log import FORMAT, WeightedLog, weighted_log
from trainer.cli import main
from trainer.serving import open_run

SETTINGS = """
[data]
path = "{data}"
batch_rows = 256
[model]
tables = "per_feature"
table_rows = 1000
{more}
[metrics]
port = -1
[stepsize]
policy = "observe"
interval = 5
count = 2
[schedule]
name = "constant"
[budget]
steps = 12
"""


@pytest.fixture(scope="module")
def log() -> WeightedLog:
    return weighted_log(3000)


@pytest.fixture(scope="module")
def data(log: WeightedLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    (folder / "log.toml").write_text(FORMAT)
    log.write(folder / "log.csv")
    arguments = ["--format", str(folder / "log.toml"), "--out", str(folder / "data")]
    assert main(["preprocess", str(folder / "log.csv"), *arguments]) == 0
    return folder / "data"


@pytest.fixture
def write(tmp_path: Path, data: Path) -> Callable[..., str]:
    def write(more: str) -> str:
        path = tmp_path / "config.toml"
        path.write_text(SETTINGS.format(data=data, more=more))
        return str(path)

    return write


def test_trained_predicted_and_exported(
    write: Callable[..., str], log: WeightedLog, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert main(["train", write("feature_rows = { item = 37 }"), "--run", str(run), "--budget.steps", "7"]) == 0
    assert main(["train", write("feature_rows = { item = 37 }"), "--run", str(run)]) == 0
    assert main(["train", write("feature_rows = [1000, 37]"), "--run", str(other)]) == 0
    opened = open_run(run)
    assert opened.learner.tables == (50, 37)
    assert opened.model.state_dict()["table.weight"].shape[0] == 87
    weights = [open_run(each).model.state_dict() for each in (run, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    # buckets are reduced by the feature's own number, not by the table's first
    wide = torch.cat([batch.ids for batch in open_split(str(data), table_rows=5000, split="test")], 1)
    narrow = torch.cat([batch.ids for batch in open_split(str(data), table_rows=(1000, 37), split="test")], 1)
    assert torch.equal(narrow, torch.stack([wide[0] % 1000, wide[1] % 37]))
    assert len(narrow[1].unique()) == 37

    tail = log.write(tmp_path / "tail.csv", rows=slice(2700, 3000), without=("click", "weight"))
    for source, out in ((tail, "a.csv"), (data, "b.csv")):
        split = [] if source == tail else ["--split", "test"]
        assert main(["predict", str(run), str(source), *split, "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    scores = np.loadtxt(tmp_path / "a.csv", skiprows=1)

    assert main(["export", str(run), "--out", str(tmp_path / "clicks"), "--onnx", "no"]) == 0
    card = json.loads((tmp_path / "clicks" / "card.json").read_text())
    assert card["tables"] == [50, 37]
    assert card["format"]["table_rows"] == [1000, 37]
    assert "87 rows in 2 tables" in (tmp_path / "clicks" / "card.html").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("exported_encode", tmp_path / "clicks" / "encode.py")
    assert spec is not None
    assert spec.loader is not None
    encode = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(encode)
    lines = log.lines[2700:3000]
    program = torch.export.load(tmp_path / "clicks" / "model.pt2").module()
    without = [line.split(",", 2)[2] for line in lines]
    for form in (lines, [f"3,{line}" for line in without], without):
        dense, ids = zip(*map(encode.encode_line, form), strict=True)
        found = program(torch.tensor(dense), torch.tensor(ids, dtype=torch.int32).T)
        np.testing.assert_allclose(found.numpy(), scores, atol=2e-6)
    with pytest.raises(ValueError, match="weight b'-1' is not a positive number"):
        encode.encode_line("1,-1,3,shop1,item1")

    dense, ids = torch.zeros(1, 1), torch.tensor([[3], [37]], dtype=torch.int32)
    with pytest.raises(InputError, match="ids from 37 to 37; the table of sparse feature 1 has 37 rows"):
        opened.predict((dense, ids))
    capfd.readouterr()
    assert main(["train", write("feature_rows = { item = 38 }"), "--run", str(run)]) == 2
    assert "was started with model.feature_rows" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("feature_rows = { itme = 37 }", "'itme' is no sparse column of the data; did you mean 'item'?"),
        ("feature_rows = [37]", "model.feature_rows has 1 numbers and the data 2 sparse columns; give one each"),
        ("feature_rows = [37, 0]", "model.feature_rows: 2 has 0; give a whole number from 1"),
        ("feature_rows = { item = -4 }", "model.feature_rows: item has -4; give a whole number from 1"),
    ],
)
def test_sizes_that_do_not_fit_are_told_in_one_line(
    write: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str], more: str, told: str
) -> None:
    capfd.readouterr()
    assert main(["train", write(more), "--run", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_sizes_of_features_need_tables_of_their_own(
    write: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", write("feature_rows = [37, 37]"), "--run", str(tmp_path / "run")]
    assert main([*arguments, "--model.tables", "shared"]) == 2
    assert "model.feature_rows is given and model.tables is 'shared'" in capfd.readouterr().err
