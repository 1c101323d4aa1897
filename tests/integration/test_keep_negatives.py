"""`preprocess --keep-negatives`: which rows stay, whatever way they are encoded, and what a run makes of it."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StorageError
from pipeline.preprocess import PreprocessConfig, forecast, preprocess
from pipeline.preprocess.workplace import PartRecord, Workplace, save_record
from pipeline.shards import Manifest
from tests.weighted_log import UNWEIGHTED_FORMAT, weighted_log
from trainer.cli import main
from trainer.config import load_config
from trainer.serving import open_run

SHARE = 0.2
ROWS = 20_000
LOG = weighted_log(ROWS, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """log.csv, and data made of it."""
    folder = tmp_path_factory.mktemp("kept")
    LOG.write(folder / "log.csv")
    (folder / "log.toml").write_text(UNWEIGHTED_FORMAT)
    make(folder, folder / "data")
    return folder


def make(folder: Path, out: Path, *more: str, log: str = "log.csv", share: float | None = SHARE) -> int:
    arguments = [] if share is None else ["--keep-negatives", str(share)]
    return main(
        ["preprocess", str(folder / log), "--format", str(folder / "log.toml"), "--out", str(out), *arguments, *more]
    )


def rows_of(data: Path, split: str = "train") -> pa.Table:
    shards = Manifest.load(data).splits[split].shards
    return pa.concat_tables(pq.read_table(data / shard.path) for shard in shards)


def test_all_clicks_and_the_share_of_the_others_stay(folder: Path, tmp_path: Path) -> None:
    assert make(folder, tmp_path / "all", share=None) == 0
    all_of, kept = rows_of(tmp_path / "all"), rows_of(folder / "data")
    clicks, others = (np.sum(LOG.label[: len(all_of)] == label) for label in (1, 0))
    stayed = len(kept) - clicks
    assert np.sum(kept["click"].to_numpy()) == clicks
    assert abs(stayed - SHARE * others) < 5 * math.sqrt(others * SHARE * (1 - SHARE))
    for split in ("validation", "test"):
        assert rows_of(folder / "data", split).equals(rows_of(tmp_path / "all", split))
    # the rest is in order, and those left out are spread evenly over the log
    places = iter(range(len(all_of)))
    values = list(zip(*(all_of[name].to_pylist() for name in all_of.column_names), strict=True))
    taken = [next(i for i in places if values[i] == row) for row in zip(*kept.to_pydict().values(), strict=True)]
    first_half = np.sum((np.array(taken) < len(all_of) / 2) & (LOG.label[taken] == 0))
    assert abs(first_half - stayed / 2) < 5 * math.sqrt(stayed / 4)
    # what is counted is counted of what stayed
    manifest, before = Manifest.load(folder / "data"), Manifest.load(tmp_path / "all")
    assert manifest.plan["keep_negatives"] == manifest.negatives_kept == SHARE
    assert manifest.statistics["dropped_negatives"] == others - stayed == before.rows - manifest.rows
    assert manifest.statistics["columns"]["item"]["distinct"] <= before.statistics["columns"]["item"]["distinct"]
    assert manifest.statistics["columns"]["age"]["missing_rate"] == 0.0
    assert "keep_negatives" not in before.plan
    assert "dropped_negatives" not in before.statistics


def test_which_rows_stay_depends_on_their_place_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows_of(folder / "data")
    (tmp_path / "log.toml").write_bytes((folder / "log.toml").read_bytes())
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((folder / "log.csv").read_bytes()))
    assert make(tmp_path, tmp_path / "packed", "--workers", "2", log="log.csv.gz") == 0
    assert make(folder, tmp_path / "short", "--workers", "2", "--rows-per-shard", "700") == 0
    assert make(folder, tmp_path / "alone", "--workers", "1", "--rows-per-shard", "700") == 0
    for name in ("packed", "short", "alone"):
        assert rows_of(tmp_path / name).equals(expected)
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("short", "alone")]
    assert manifests[0] == manifests[1]

    # begun, broken off and continued
    config = PreprocessConfig(
        sources=(str(folder / "log.csv"),),
        out=tmp_path / "broken",
        format=str(folder / "log.toml"),
        rows_per_shard=700,
        workers=1,
        keep_negatives=SHARE,
    )
    done = itertools.count()

    def save(place: Workplace, record: PartRecord) -> None:
        if next(done) == 7:
            raise OSError(28, "No space left on device")
        save_record(place, record)

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.preprocess.encoder.save_record", save)
        with pytest.raises(StorageError, match="No space left"):
            preprocess(config)
    assert preprocess(config).resumed_rows > 0
    assert (tmp_path / "broken" / "manifest.json").read_bytes() == manifests[0]
    assert forecast(config).rows == pytest.approx(Manifest.load(folder / "data").rows, rel=0.1)


def test_another_log_is_drawn_from_apart(folder: Path, tmp_path: Path) -> None:
    """Of two files with the same lines other ones stay."""
    lines = (folder / "log.csv").read_text().splitlines()
    for name in ("a.csv", "b.csv", "c.csv"):
        text = "\n".join(lines if name < "c" else lines[:3]) + "\n"
        (tmp_path / name).write_text(text if name == "a.csv" else text.replace("item1,", "item2,"))
    (tmp_path / "log.toml").write_bytes((folder / "log.toml").read_bytes())
    shop = {}
    for place, names in enumerate((("a.csv",), ("c.csv", "a.csv"))):
        sources = [str(tmp_path / name) for name in names]
        out = tmp_path / f"data{place}"
        arguments = ["--format", str(tmp_path / "log.toml"), "--keep-negatives", "0.2", "--split", "train"]
        assert main(["preprocess", *sources, "--out", str(out), *arguments]) == 0
        shop[place] = rows_of(out)["item"].to_pylist()[-2000:]
    assert shop[0] != shop[1]


def test_additions_keep_the_same_share(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    LOG.write(tmp_path / "a.csv", rows=slice(0, 9000))
    LOG.write(tmp_path / "b.csv", rows=slice(9000, 18000))
    (tmp_path / "log.toml").write_bytes((folder / "log.toml").read_bytes())
    assert make(tmp_path, data, log="a.csv") == 0
    before = Manifest.load(data)
    assert make(tmp_path, data, "--append", log="b.csv", share=0.5) == 2
    assert f"was made with keep-negatives {SHARE}, not 0.5" in capfd.readouterr().err
    assert make(tmp_path, data, "--append", log="b.csv", share=None) == 0
    assert "training rows of label 0 are left out, 0.2 of them kept" in capfd.readouterr().err
    manifest = Manifest.load(data)
    added = manifest.generations[1]
    others = int(np.sum(LOG.label[9000:18000] == 0))
    assert added.plan["keep_negatives"] == SHARE
    assert added.statistics["dropped_negatives"] == pytest.approx((1 - SHARE) * others, rel=0.05)
    assert manifest.statistics["dropped_negatives"] == (
        before.statistics["dropped_negatives"] + added.statistics["dropped_negatives"]
    )
    assert make(tmp_path, data, log="a.csv", share=0.5) == 2
    assert main(["inspect", str(data), "--json"]) == 0
    overview = json.loads(capfd.readouterr().out)
    assert overview["data"][0]["negatives_kept"] == SHARE
    assert main(["verify", str(data)]) == 0


def test_what_is_appended_is_drawn_as_if_it_had_been_there(folder: Path, tmp_path: Path) -> None:
    """Not on the lines that stayed of the log before, which in a log sorted alike would be the same users' again."""
    (tmp_path / "log.toml").write_bytes((folder / "log.toml").read_bytes())
    for name, rows in (("a", slice(0, 3000)), ("b", slice(3000, 6000)), ("c", slice(6000, 9000))):
        LOG.write(tmp_path / f"{name}.csv", rows=rows)
    both = [str(tmp_path / f"{name}.csv") for name in "abc"]
    formed = ["--format", str(tmp_path / "log.toml"), "--keep-negatives", str(SHARE), "--split", "train"]
    assert main(["preprocess", *both, "--out", str(tmp_path / "once"), *formed]) == 0
    assert make(tmp_path, tmp_path / "grown", "--split", "train", log="a.csv") == 0
    for name in "bc":
        assert make(tmp_path, tmp_path / "grown", "--append", log=f"{name}.csv", share=None) == 0
    assert rows_of(tmp_path / "grown").equals(rows_of(tmp_path / "once"))


@pytest.mark.parametrize("share", ["0", "-0.1", "1.5", "nan"])
def test_what_is_no_share_is_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], share: str
) -> None:
    assert make(folder, tmp_path / "data", share=float(share)) == 2
    error = capfd.readouterr().err.strip()
    assert "must be a share of the rows of label 0" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "data").exists()


SETTINGS = """
[data]
path = "{data}"
batch_rows = 128
[model]
table_rows = 512
[metrics]
port = -1
[budget]
epochs = 1
"""


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    (folder / "config.toml").write_text(SETTINGS.format(data=folder / "data"))
    assert main(["train", str(folder / "config.toml"), "--run", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_corrects_its_answers_to_the_whole_log(folder: Path, run: Path) -> None:
    loss = load_config(run / "config.toml").loss
    assert (loss.negatives_kept, loss.evaluated_negatives_kept) == (SHARE, 1.0)
    opened = open_run(run)
    scores = opened.predict(LOG.lines[18000:])
    rate = LOG.label[18000:].mean()
    assert scores.mean() == pytest.approx(rate, rel=0.05)
    assert rate / (rate + SHARE * (1 - rate)) > 1.5 * rate  # what it would be without the correction
    found = opened.evaluate("test")
    assert found.calibration == pytest.approx(scores.mean() / rate, rel=1e-5)
    # the sampled split stands for all of its rows too
    trained = opened.evaluate("train")
    assert trained.calibration == pytest.approx(1.0, abs=0.1)
    assert trained.loss == pytest.approx(found.loss, rel=0.2)
    assert main(["train", str(folder / "config.toml"), "--run", str(run), "--budget.epochs", "1"]) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            "negatives_kept = 0.3",
            "loss.negatives_kept is 0.3, and the data was preprocessed with --keep-negatives 0.2; leave "
            "loss.negatives_kept out, or set it to 0.2",
        ),
        ("negatives_kept = 0.2\nevaluated_negatives_kept = 0.5", "of the 0.5 of the log"),
        ("negatives_kept = 0.1\nevaluated_negatives_kept = 0.5", None),
        ("evaluated_negatives_kept = 0.5", None),
        ("negatives_kept = 0.2", None),
        ('correction = "none"', None),
        ('correction = "weight"', None),
    ],
)
def test_settings_that_contradict_the_data_are_told_in_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: str, told: str | None
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(SETTINGS.format(data=folder / "data") + f"[loss]\n{more}\n")
    code = main(["train", str(path), "--run", str(tmp_path / "run"), "--budget.steps", "2"])
    error = capfd.readouterr().err.strip()
    if told is not None:
        assert code == 2
        assert told in error
        assert len(error.splitlines()) == 1
        return
    assert code == 0
    loss = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["loss"]
    assert loss["negatives_kept"] == pytest.approx(0.1 if "0.5" in more else 0.2)
    assert loss.get("evaluated_negatives_kept") == (None if "none" in more else 0.5 if "0.5" in more else 1.0)
