from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError, StorageError
from pipeline.sample import SampleConfig, SampleSummary, write_sample

ROWS = 70_000


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> tuple[Path, SampleSummary]:
    out = tmp_path_factory.mktemp("sample") / "log"
    return out, write_sample(SampleConfig(out=out, rows=ROWS, days=2, seed=7))


def fields(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_lines_have_criteos_shape(sample):
    out, summary = sample
    assert [day.file for day in summary.days] == ["day_0.tsv", "day_1.tsv"]
    lines = fields(out / "day_0.tsv")
    assert len(lines) == ROWS // 2
    assert {len(line) for line in lines} == {40}
    assert {line[0] for line in lines} == {"0", "1"}
    hexadecimal = set("0123456789abcdef")
    for line in lines[:2000]:
        assert all(value == "" or int(value) >= -2 for value in line[1:14])
        assert all(value == "" or (len(value) == 8 and set(value) <= hexadecimal) for value in line[14:])


def test_values_look_like_a_click_log(sample):
    out, _ = sample
    columns = list(zip(*fields(out / "day_0.tsv"), strict=True))
    integers = columns[1:14]
    assert {"-1", "-2"} <= set(integers[1])
    assert max(int(value or 0) for value in integers[4]) > 20_000
    empty = [column.count("") / len(column) for column in columns]
    assert empty[12] == pytest.approx(0.76, abs=0.02)
    assert empty[0] == 0
    assert sum(share > 0.3 for share in empty[14:]) == 4
    values, counts = np.unique(columns[14], return_counts=True)
    assert len(values) > 2_000
    assert np.sort(counts)[-10:].sum() > 0.2 * len(columns[14])
    assert len(set(columns[14]) & set(columns[15])) <= 1  # columns share no word but the empty one


def test_labels_agree_with_the_stated_rate_and_entropy(sample):
    out, summary = sample
    labels = [int(line[0]) for day in summary.days for line in fields(out / day.file)]
    rate = sum(labels) / ROWS
    assert summary.label_rate == pytest.approx(rate, abs=1e-12)
    assert rate == pytest.approx(0.25, abs=0.01)
    assert summary.label_entropy == pytest.approx(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate))
    assert 0.35 < summary.best_loss < summary.label_entropy - 0.05


def test_best_loss_is_the_entropy_of_the_true_probabilities(sample):
    """Averaged over labels a model's loss is least, and its own entropy, where its probabilities are the true ones."""
    from pipeline.sample.writer import _Model

    _, summary = sample
    logits = _Model(7).draw(np.random.default_rng(123), 200_000)[3]
    p = 1 / (1 + np.exp(-logits))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    spread = np.sqrt(np.mean(p * (1 - p) * logits**2) / ROWS)  # of the mean loss over ROWS draws of the labels
    assert summary.best_loss == pytest.approx(entropy.mean(), abs=5 * spread)


def test_labels_depend_on_what_survives_the_encoding(sample):
    """Missing integers and −1, −2 are encoded as 0, so they must have 0's effect: logits equal, whatever is hidden."""
    from pipeline.sample.writer import _INTEGER_SLOPES, _NEGATIVE_COLUMN, _Model

    model = _Model(7)
    integers, missing, ranks, logits = model.draw(np.random.default_rng(5), 3000)
    encoded = np.where(missing, 0, np.maximum(integers, 0))
    expected = model.offset + (_INTEGER_SLOPES[:, None] * np.log1p(encoded)).sum(0)
    expected += sum(model.effects[j, np.minimum(ranks[j], model.effects.shape[1] - 2)] for j in range(26))
    np.testing.assert_allclose(logits, expected, rtol=1e-10)
    assert (integers[_NEGATIVE_COLUMN] < 0).any()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_rows(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sample(SampleConfig(out=tmp_path / name, rows=500, seed=seed))
    content = {name: (tmp_path / name / "day_0.tsv").read_bytes() for name in "abc"}
    assert content["a"] == content["b"]
    assert content["a"] != content["c"]


def test_days_share_the_rows_evenly_and_progress_counts_lines(tmp_path):
    seen: list[int] = []
    summary = write_sample(SampleConfig(out=tmp_path / "log", rows=10, days=3), progress=seen.append)
    assert [day.rows for day in summary.days] == [3, 3, 4]
    assert seen == [3, 6, 10]
    assert [len(fields(tmp_path / "log" / day.file)) for day in summary.days] == [3, 3, 4]


def test_later_days_are_those_of_the_same_log(tmp_path):
    whole = write_sample(SampleConfig(out=tmp_path / "whole", rows=400, days=4, seed=3))
    later = write_sample(SampleConfig(out=tmp_path / "later", rows=200, days=2, seed=3, first_day=2))
    assert later.days == whole.days[2:]
    for day in later.days:
        assert (tmp_path / "later" / day.file).read_bytes() == (tmp_path / "whole" / day.file).read_bytes()
    with pytest.raises(InputError, match=r"holds another sample \(200 rows, 2 days from day_2\.tsv on, seed 3\)"):
        write_sample(SampleConfig(out=tmp_path / "later", rows=200, days=2, seed=3))


def test_summary_stands_beside_the_days(sample):
    out, summary = sample
    values = json.loads((out / "sample.json").read_text())
    assert values["best_loss"] == summary.best_loss
    assert values["days"][1]["rows"] == ROWS // 2
    assert "70,000 rows in 2 file(s)" in str(summary)


def test_a_finished_sample_is_not_written_again_and_another_is_refused(tmp_path):
    out = tmp_path / "log"
    first = write_sample(SampleConfig(out=out, rows=50))
    stamp = (out / "day_0.tsv").stat().st_mtime_ns
    assert write_sample(SampleConfig(out=out, rows=50)) == first
    assert (out / "day_0.tsv").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="holds another sample"):
        write_sample(SampleConfig(out=out, rows=51))


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "log").write_text("")
    with pytest.raises((InputError, StorageError), match="log"):
        write_sample(SampleConfig(out=tmp_path / "log", rows=50))


@pytest.mark.parametrize("options", [{"rows": 0}, {"rows": 2, "days": 3}, {"days": 0}, {"seed": -1}, {"first_day": -1}])
def test_impossible_samples_are_refused(tmp_path, options):
    with pytest.raises(InputError, match="give"):
        SampleConfig(out=tmp_path, **options)
