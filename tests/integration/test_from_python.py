"""Runs from Python: trained in a thread too, opened, asked, their records read, what the command line gives alike."""

from __future__ import annotations

import doctest
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import trainer
from pipeline.device import open_split
from pipeline.errors import InputError
from trainer.cli import main
from trainer.loop import Stop

STEPS = 12


@pytest.fixture(scope="module")
def settings(small_data: Path) -> dict[str, Any]:
    return {
        "data": {"path": str(small_data), "batch_rows": 64},
        "model": {"table_rows": 2048},
        "optimizer": {"average": "ema", "lr": 0.01},
        "budget": {"steps": STEPS},
        "eval": {"every_steps": 6, "rows": 500},
    }


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained in a thread, which hears no signals."""
    path = tmp_path_factory.mktemp("python") / "run"
    found: list[trainer.TrainedRun] = []
    thread = threading.Thread(target=lambda: found.append(trainer.train(settings, path, quiet=True)))
    thread.start()
    thread.join()
    assert [(each.stop, each.run) for each in found] == [(Stop.BUDGET, path)]
    return path


@pytest.fixture(scope="module")
def opened(run: Path) -> trainer.OpenedRun:
    return trainer.open_run(run)


@pytest.fixture(scope="module")
def lines(small_log: Path) -> list[str]:
    [path] = sorted(small_log.glob("day_0*"))
    return path.read_text(encoding="utf-8").splitlines()[:300]


def test_lines_are_scored_as_by_the_command(
    opened: trainer.OpenedRun, lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [*lines[:7], "nonsense", *lines[7:]]
    (tmp_path / "log.tsv").write_text("\n".join(bad) + "\n", encoding="utf-8")
    out = tmp_path / "scores.parquet"
    assert main(["predict", str(opened.run), str(tmp_path / "log.tsv"), "--out", str(out)]) == 0, capsys.readouterr()
    found = opened.predict(bad)
    expected = pq.read_table(out)["probability"].to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    assert list(np.flatnonzero(np.isnan(found))) == [7]


def test_tables_lines_without_label_and_tensors_agree(opened: trainer.OpenedRun, lines: list[str]) -> None:
    expected = opened.predict(lines)
    log_format = opened.log_format
    fields = dict(zip(log_format.columns, zip(*(line.split("\t") for line in lines), strict=True), strict=True))
    columns: dict[str, Any] = {
        name: [float(value) if value else None for value in values] if name in log_format.dense else list(values)
        for name, values in fields.items()
    }
    table = pa.table(columns)
    np.testing.assert_array_equal(opened.predict(table), expected)
    np.testing.assert_array_equal(opened.predict(table.drop_columns([log_format.label])), expected)
    np.testing.assert_array_equal(opened.predict([line.split("\t", 1)[1] for line in lines]), expected)
    assert len(np.unique(expected)) > 100


def test_a_table_s_label_is_not_looked_at_and_truth_is_a_number_or_refused(
    opened: trainer.OpenedRun, lines: list[str]
) -> None:
    log_format = opened.log_format
    bare = log_format.without_label()
    fields = [line.split("\t")[1:] for line in lines]
    fields = [[str(row % 2), *each[1:]] for row, each in enumerate(fields)]
    expected = opened.predict(["\t".join(each) for each in fields])
    table = pa.table(dict(zip(bare.columns, map(list, zip(*fields, strict=True)), strict=True)))
    truth = pa.array([row % 2 == 1 for row in range(len(fields))])
    dense = table.set_column(0, bare.columns[0], truth)
    np.testing.assert_array_equal(opened.predict(dense.append_column(log_format.label, truth)), expected)
    for wrong in (truth, truth.cast(pa.int64()).cast(pa.timestamp("s"))):
        with pytest.raises(InputError, match=f"column {bare.sparse[0]!r} is of type"):
            opened.predict(table.set_column(bare.columns.index(bare.sparse[0]), bare.sparse[0], wrong))
    with pytest.raises(InputError, match=f"has twice column {bare.dense[0]!r}"):
        opened.predict(table.append_column(bare.dense[0], truth))


def test_any_table_that_arrow_can_read_is_scored(opened: trainer.OpenedRun, lines: list[str]) -> None:
    class Frame:
        """As Polars' and DuckDB's are."""

        def __init__(self, table: pa.Table) -> None:
            self.columns, self._table = table.column_names, table

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return self._table.__arrow_c_stream__(requested_schema)

    fields = zip(*(line.split("\t") for line in lines), strict=True)
    table = pa.table(dict(zip(opened.log_format.columns, map(list, fields), strict=True)))
    values: Any = Frame(table)
    np.testing.assert_array_equal(opened.predict(values), opened.predict(lines))


def test_an_empty_line_has_no_score(opened: trainer.OpenedRun, lines: list[str]) -> None:
    assert np.isnan(opened.predict([*lines[:3], "", lines[3]])).tolist() == [False, False, False, True, False]


def test_the_model_is_the_one_that_answers(opened: trainer.OpenedRun) -> None:
    batch = next(iter(open_split(opened.config.data.path, table_rows=2048, batch_rows=256)))
    with torch.no_grad():
        logits = opened.model(batch.dense, batch.ids)
        raw = opened.learner.model(batch.dense, batch.ids)
    np.testing.assert_allclose(opened.predict((batch.dense, batch.ids)), logits.sigmoid().numpy(), rtol=1e-6, atol=0)
    assert not opened.model.training
    assert not torch.allclose(logits, raw, rtol=1e-5)


def test_records_are_tables(opened: trainer.OpenedRun) -> None:
    records = opened.records
    assert records.steps["step"].to_pylist() == list(range(1, STEPS + 1)) or records.steps.num_rows == STEPS
    assert {"step", "relative"} <= set(records.alpha.column_names)
    evaluations = records.evaluations
    assert set(evaluations["split"].to_pylist()) >= {"validation"}
    last = [row for row in evaluations.to_pylist() if row["split"] == "validation"][-1]
    assert opened.evaluate("validation", rows=500).loss == pytest.approx(last["loss"], rel=1e-6)
    assert "start" in records.events["event"].to_pylist()


def test_records_are_data_frames(opened: trainer.OpenedRun) -> None:
    pytest.importorskip("pandas", reason="the extra `pandas` is not installed")
    records = opened.records
    steps = records.frame("steps")
    assert list(steps.columns) == records.steps.column_names
    assert steps["step"].tolist() == records.steps["step"].to_pylist()
    assert steps["loss"].isna().sum() == 0
    evaluations = records.frame("evaluations")
    assert evaluations["split"].tolist() == records.evaluations["split"].to_pylist()
    assert len(records.frame("alpha")) == records.alpha.num_rows
    assert "start" in records.frame("events")["event"].tolist()


def test_a_data_frame_of_fields_is_scored(opened: trainer.OpenedRun, lines: list[str]) -> None:
    pandas: Any = pytest.importorskip("pandas", reason="the extra `pandas` is not installed")
    log_format = opened.log_format
    frame = pandas.DataFrame([line.split("\t") for line in lines], columns=list(log_format.columns))
    expected = opened.predict(lines)
    np.testing.assert_array_equal(opened.predict(frame), expected)
    for name in log_format.dense:  # as pandas.read_csv makes of them: floats, NaN where nothing is
        frame[name] = pandas.to_numeric(frame[name])
    np.testing.assert_array_equal(opened.predict(frame.drop(columns=[log_format.label])), expected)


def test_without_pandas_a_frame_is_refused_in_a_line(
    opened: trainer.OpenedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install 'alphastream\[pandas\]', or use records.steps"):
        opened.records.frame("steps")
    name: Any = "losses"
    with pytest.raises(InputError, match="no records 'losses'; give one of steps, alpha"):
        opened.records.frame(name)


def test_a_finished_run_goes_on_with_a_larger_budget(run: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    again = trainer.train({**settings, "budget": {"steps": STEPS + 3}}, tmp_path / "run", quiet=True)
    assert again.reason == "the budget is reached"
    assert again.open().step == STEPS + 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("text", "list of lines"),
        (b"text", "list of lines"),
        (5, "list of lines"),
        ([b"1"], "line 0 is of type bytes"),
        (["1", ["2"]], "line 1 is of type list"),
        (["a\nb"], "line 0"),
        (pa.table({"I1": [1]}), "lacks column"),
        ((torch.zeros(2, 13), torch.zeros(26, 3, dtype=torch.int32)), "do not fit"),
        ((torch.zeros(1, 13), torch.full((26, 1), 2048)), "the table has 2048 rows"),
        ((torch.zeros(1, 12), torch.zeros(26, 1, dtype=torch.int32)), r"give dense \(R, 13\)"),
        ((torch.zeros(1, 13, dtype=torch.int32), torch.zeros(26, 1, dtype=torch.int32)), "logarithms in float32"),
        ((torch.zeros(1, 13), torch.zeros(26, 1)), "table rows in int32"),
        (["1\t2"], "the lines: its first line has 2 fields"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_line(opened: trainer.OpenedRun, values: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        opened.predict(values)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_named_by_its_number(run: Path) -> None:
    with pytest.raises(InputError, match="give the number of its step"):
        trainer.open_run(run, checkpoint=str(STEPS))  # pyright: ignore[reportArgumentType]


def test_no_lines_give_no_scores(opened: trainer.OpenedRun) -> None:
    assert opened.predict([]).shape == (0,)


def test_the_example_of_the_package_does_what_it_says(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(small_data)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(trainer, extraglobs={"train": trainer.train, "open_run": trainer.open_run})
    assert (result.failed, result.attempted) == (0, 4)
