"""A log whose rows have weights: preprocessed, trained on, continued, evaluated, predicted; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from pipeline import open_batches, open_pairs, open_split
from pipeline.shards import Manifest
from tests.resume import lasting, same_bits
from tests.weighted_log import COLUMNS, FORMAT, UNWEIGHTED_FORMAT, WeightedLog, weighted_log
from trainer.cli import main
from trainer.records import read_records
from trainer.serving import open_run

SETTINGS = """
[data]
path = "{data}"
batch_rows = 256
[model]
table_rows = 512
[metrics]
port = -1
[schedule]
name = "constant"
[eval]
every_steps = 10
progressive = true
progressive_rows = 1000
[stepsize]
policy = "median_hold"
interval = 4
count = 3
start = 2
[budget]
steps = {steps}
{more}
"""


@pytest.fixture(scope="module")
def log() -> WeightedLog:
    return weighted_log()


@pytest.fixture(scope="module")
def folder(log: WeightedLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """log.csv, and data made of it, with weights and without."""
    folder = tmp_path_factory.mktemp("weighted")
    log.write(folder / "log.csv")
    for name, text in (("weighted", FORMAT), ("plain", UNWEIGHTED_FORMAT)):
        (folder / f"{name}.toml").write_text(text.replace('label = "click"', f'name = "{name}"\nlabel = "click"'))
        arguments = ["--format", str(folder / f"{name}.toml"), "--out", str(folder / name)]
        assert main(["preprocess", str(folder / "log.csv"), *arguments]) == 0
    return folder


@pytest.fixture
def write(tmp_path: Path, folder: Path) -> Callable[..., str]:
    def write(more: str = "", *, data: str = "weighted", steps: int = 24) -> str:
        path = tmp_path / "config.toml"
        path.write_text(SETTINGS.format(data=folder / data, steps=steps, more=more))
        return str(path)

    return write


def test_shards_hold_the_weights_and_every_reader_hands_them_out(log: WeightedLog, folder: Path) -> None:
    manifest = Manifest.load(folder / "weighted")
    rows = np.concatenate(
        [
            pq.read_table(folder / "weighted" / shard.path)["weight"].to_numpy()
            for name in ("train", "validation", "test")
            for shard in manifest.splits[name].shards
        ]
    )
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, log.weight.astype(np.float32))
    statistics = manifest.statistics["columns"]["weight"]
    assert statistics["mean"] == pytest.approx(rows.astype(np.float64).mean(), rel=1e-12)
    assert (statistics["minimum"], statistics["maximum"]) == (rows.min(), rows.max())
    # the shards of the same log without the weights are what they would be without this
    plain = Manifest.load(folder / "plain")
    table = pq.read_table(folder / "plain" / plain.splits["train"].shards[0].path)
    assert table.column_names == ["click", "age", "shop", "item"]
    assert "weight" not in plain.format.to_dict()
    assert "weight" not in plain.statistics["columns"]

    count = manifest.splits["train"].rows
    data = str(folder / "weighted")
    with open_batches(data, table_rows=512, batch_rows=500, epochs=1) as batches:
        seen = [(batch.label, batch.weight) for batch in batches if batch.weight is not None]
    found = sorted((float(w), int(y)) for label, weight in seen for y, w in zip(label, weight, strict=True))
    assert found == sorted(zip(rows[:count].tolist(), log.label[:count].tolist(), strict=True))
    with open_pairs(data, table_rows=512, batch_rows=500, pairing="disjoint", epochs=1) as pairs:
        pair = next(pairs)
        assert pair.b1.weight is not None
        assert pair.b2.weight is not None
        assert not set(pair.b1.weight.tolist()) >= set(pair.b2.weight.tolist())
    in_order = [batch.weight for batch in open_split(data, table_rows=512, batch_rows=77, split="test")]
    np.testing.assert_array_equal(torch.cat([each for each in in_order if each is not None]).numpy(), rows[-600:])
    assert next(open_split(str(folder / "plain"), table_rows=512)).weight is None


def test_trained_continued_evaluated_and_predicted(
    write: Callable[..., str], log: WeightedLog, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, cut, ignored = tmp_path / "whole", tmp_path / "cut", tmp_path / "ignored"
    config = write()
    assert main(["train", config, "--run", str(whole)]) == 0
    assert "a row counts as often as 'weight' says" in capfd.readouterr().err
    assert main(["train", config, "--run", str(cut), "--budget.steps", "11"]) == 0
    assert main(["train", config, "--run", str(cut)]) == 0
    assert lasting(cut)[1:] == lasting(whole)[1:]
    assert same_bits(lasting(cut)[0], lasting(whole)[0])
    evaluations = [list(read_records(run / "evals.jsonl")) for run in (whole, cut)]
    figures = [
        [{k: v for k, v in each.items() if "seconds" not in k} for each in run if each["split"] == "progressive"]
        for run in evaluations
    ]
    assert figures[0] == figures[1]
    assert len(figures[0]) >= 3
    assert all(each["weight"] > each["rows"] for run in evaluations for each in run)

    # weights have a say in what is learned, and none where that is asked for
    assert main(["train", config, "--run", str(ignored), "--loss.sample-weights", "False"]) == 0
    assert "are not used, as loss.sample_weights = false has it" in capfd.readouterr().err
    assert not same_bits(lasting(ignored)[0], lasting(whole)[0])
    plain = tmp_path / "plain"
    assert main(["train", write(data="plain"), "--run", str(plain)]) == 0
    assert same_bits(lasting(ignored)[0], lasting(plain)[0])
    assert lasting(ignored)[1:] == lasting(plain)[1:]
    assert all("weight" not in each for each in read_records(ignored / "evals.jsonl"))

    # evaluate: by hand, from the model's own logits and the log's lines
    opened = open_run(whole)
    found = opened.evaluate("test")
    with opened.learner.answering() as model, torch.no_grad():
        batches = list(open_split(str(folder / "weighted"), table_rows=512, split="test", batch_rows=600))
        [logits] = [model(batch.dense, batch.ids).double() for batch in batches]
    label, weight = torch.tensor(log.label[-600:]).double(), torch.tensor(log.weight[-600:].astype(np.float32)).double()
    losses = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    assert found.weight == pytest.approx(weight.sum().item(), rel=1e-12)
    assert found.loss == pytest.approx(((losses * weight).sum() / weight.sum()).item(), rel=1e-6)
    calibration = (logits.sigmoid() * weight).sum() / (label * weight).sum()
    assert found.calibration == pytest.approx(calibration.item(), rel=1e-6)
    pairs = weight[label == 1][:, None] * weight[label == 0]
    above = torch.sign(logits[label == 1][:, None] - logits[label == 0]) / 2 + 0.5
    assert found.auc == pytest.approx(((pairs * above).sum() / pairs.sum()).item(), rel=1e-6)
    assert opened.evaluate("test", data=str(folder / "plain")).weight is None

    # predict: the lines and the split give the same scores and figures, with fewer columns the same scores
    capfd.readouterr()
    tail = slice(5400, 6000)
    sources = {
        "lines.csv": log.write(tmp_path / "tail.csv", rows=tail),
        "unlabelled.csv": log.write(tmp_path / "unlabelled.csv", rows=tail, without=("click",)),
        "bare.csv": log.write(tmp_path / "bare.csv", rows=tail, without=("click", "weight")),
    }
    told = {}
    for out, source in sources.items():
        assert main(["predict", str(whole), str(source), "--out", str(tmp_path / f"scores-{out}"), "--json"]) == 0
        told[out] = json.loads(capfd.readouterr().out)["evaluation"]
    arguments = ["predict", str(whole), str(folder / "weighted"), "--split", "test", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "scores-split.csv")]) == 0
    told["split.csv"] = json.loads(capfd.readouterr().out)["evaluation"]
    scores = {(tmp_path / f"scores-{out}").read_bytes() for out in told}
    assert len(scores) == 1
    assert told["unlabelled.csv"] is None
    assert told["bare.csv"] is None
    for out in ("lines.csv", "split.csv"):
        assert {**told[out], "split": "test"} == found.values()

    # from Python: a table with all columns, without the label's weight, and with what the model reads alone
    columns = list(zip(*(line.split(",") for line in log.lines[tail]), strict=True))
    table = pa.table(dict(zip(COLUMNS, map(list, columns), strict=True)))
    expected = np.loadtxt(tmp_path / "scores-split.csv", skiprows=1, dtype=np.float32)
    for names in ([], ["weight"], ["click"], ["click", "weight"]):
        np.testing.assert_array_equal(opened.predict(table.drop_columns(names)), expected)


def test_a_row_without_a_weight_is_rejected(folder: Path, log: WeightedLog, tmp_path: Path) -> None:
    bad = ["", "-1", "0", "nan", "inf", "1e39", "heavy", "1,5"]
    lines = [f"1,{text},3,shop1,item1" for text in bad]
    (tmp_path / "log.csv").write_text("\n".join(["click,weight,age,shop,item", *log.lines[:40], *lines]) + "\n")
    data = tmp_path / "data"
    arguments = ["--format", str(folder / "weighted.toml"), "--out", str(data), "--max-rejects", "10"]
    assert main(["preprocess", str(tmp_path / "log.csv"), *arguments]) == 0
    [rejects] = (data / "rejects").iterdir()
    reasons = [line.split("\t")[2] for line in rejects.read_text().splitlines()]
    assert reasons == [
        *(f"weight {text!r} is not a positive number" for text in bad[:-1]),
        "6 fields instead of 5",
    ]
    assert Manifest.load(data).rows == 40
    assert main(["verify", str(data)]) == 0
    assert main(["inspect", str(data)]) == 0


def test_an_addition_is_of_the_same_format(
    folder: Path, log: WeightedLog, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    first, second = (log.write(tmp_path / f"{i}.csv", rows=slice(i * 300, i * 300 + 300)) for i in (0, 1))
    weighted, plain = (["--format", str(folder / f"{name}.toml"), "--out", str(data)] for name in ("weighted", "plain"))
    assert main(["preprocess", str(first), *weighted]) == 0
    assert main(["preprocess", str(second), *plain, "--append"]) == 2
    assert "was made with another format" in capfd.readouterr().err
    assert main(["preprocess", str(second), "--out", str(data), "--append"]) == 0
    statistics = Manifest.load(data).statistics["columns"]["weight"]
    weights = log.weight[:600].astype(np.float32).astype(np.float64)
    assert statistics["mean"] == pytest.approx(weights.mean(), rel=1e-12)
    assert statistics["maximum"] == weights.max()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            "[loss]\nsample_weights = true",
            "loss.sample_weights is true, and the data has no weights; name their column",
        ),
        ("[loss]\nsample_weights = 1", "loss.sample_weights is 1; give true or false"),
    ],
)
def test_weights_that_are_not_there_are_told_in_one_line(
    write: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str], more: str, told: str
) -> None:
    capfd.readouterr()
    assert main(["train", write(more, data="plain"), "--run", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
