"""The tasks: what they promise together, that they are the same every time, and that no row is in two splits."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stepsize.suite import TASKS, Batches, Problem, SuiteError, Task
from stepsize.suite.problems import draw, named_task, rows, task
from stepsize.suite.problems.rows import (
    ClickLog,
    missing_file,
    places_at_random,
    places_in_time,
    read_click_log,
    text_examples,
    thin_positives,
)

REPORTED = [task for task in TASKS.values() if not task.fitted]
CLICKS = [task for task in REPORTED if task.group == "click logs"]
ROWS = 300


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small files under the names of the real ones."""
    folder, draws = tmp_path_factory.mktemp("logs"), random.Random(3)
    for source in ("criteo-kaggle", "criteo-1tb"):
        lines = []
        for _ in range(ROWS):
            integers = [draws.choice(["", "-1", str(draws.randrange(99))]) for _ in range(13)]
            categories = [draws.choice(["", f"{draws.randrange(40):08x}"]) for _ in range(26)]
            lines.append("\t".join([str(draws.randrange(2)), *integers, *categories]))
        (folder / rows.FILES[source]).write_bytes(gzip.compress("\n".join(lines).encode()))
    for source, dense in rows.DENSE_COLUMNS.items():
        lines = [",".join(f"c{column}" for column in range(1 + dense + 5))]
        for _ in range(ROWS):
            cells = [str(draws.randrange(60)) for _ in range(dense)] + [f"t{draws.randrange(30)}" for _ in range(5)]
            lines.append(",".join([str(draws.randrange(2)), *cells]))
        (folder / rows.FILES[source]).write_bytes(gzip.compress("\n".join(lines).encode()))
    text = "".join(draws.choice("abcdefgh ,\n") for _ in range(30_000))
    (folder / rows.FILES["shakespeare"]).write_text(text, encoding="utf-8")
    return folder


def small(known: Task) -> Task:
    """The same with as few rows as the small files have."""
    return replace(known, rows=64, held=20, batch=16, positives=0.4 if known.positives else None)


def everything(problem: Problem) -> list[torch.Tensor]:
    parts = (problem.train, problem.validation, problem.test)
    data = [tensor for part in parts for tensor in (*part.inputs, part.targets)]
    return [*problem.model.state_dict().values(), *data, problem.batches().order]


def test_there_are_as_many_tasks_as_were_promised() -> None:
    assert len(REPORTED) >= 12
    assert {known.group for known in REPORTED} == {"click logs", "classification and regression", "text"}
    assert min(Counter(known.optimizer for known in REPORTED).values()) >= 3
    assert set(Counter(known.optimizer for known in REPORTED)) == {"sgd", "momentum", "adamw", "nadamw"}
    assert {known.model for known in CLICKS} == {"mlp", "dlrm", "logistic"}
    assert {known.source for known in CLICKS} == {"criteo-kaggle", "criteo-1tb", "movielens", "frappe"}
    assert (min(known.batch for known in CLICKS), max(known.batch for known in CLICKS)) == (64, 4096)
    assert {known.epochs for known in CLICKS} == {1, 5}
    assert any(known.positives is not None and known.positives < 0.005 for known in CLICKS)
    assert all(50 <= known.steps <= 1200 for known in TASKS.values())
    assert all(known.apart for known in TASKS.values())


@pytest.mark.parametrize("name", list(TASKS))
def test_a_problem_is_a_function_of_its_seed(name: str, logs: Path) -> None:
    known = small(TASKS[name])
    first, again, other = (draw(known, seed, logs) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(everything(first), everything(again), strict=True))
    assert not torch.equal(first.batches().order, other.batches().order)
    if known.model != "logistic":  # which begins at zero
        weights = zip(first.model.parameters(), other.model.parameters(), strict=True)
        assert any(not torch.equal(one, two) for one, two in weights)
    batch = first.batches().at(0)
    assert torch.isfinite(first.loss(first.model(*batch.inputs), batch.targets))


@pytest.mark.parametrize("split", [places_in_time, places_at_random])
def test_no_row_is_in_two_splits(split) -> None:
    places = split(1000, 500, 100)
    parts = [set(part.tolist()) for part in (places.train, places.validation, places.test)]
    assert [len(part) for part in parts] == [500, 100, 100]
    assert len(set.union(*parts)) == 700
    assert set.union(*parts) <= set(range(1000))


def test_what_is_held_in_time_lies_after_what_is_trained_on() -> None:
    places = places_in_time(1000, 500, 100)
    assert places.train.max() < min(places.validation.min(), places.test.min())
    assert abs(places.validation.mean() - places.test.mean()) == 1  # in turn, so of the same days


def test_windows_of_text_share_no_character(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + number) for number in range(4000))  # every character once
    (tmp_path / rows.FILES["shakespeare"]).write_text(text, encoding="utf-8")
    *parts, characters = text_examples(tmp_path, 16, 200, 10)
    assert characters == 4000
    seen = [set(part.inputs[0].flatten().tolist()) | set(part.targets.flatten().tolist()) for part in parts]
    assert all(not one & two for one in seen for two in seen if one is not two)
    assert torch.equal(parts[0].inputs[0][:, 1:], parts[0].targets[:, :-1])


def test_click_logs_are_read_as_they_are_written(tmp_path: Path) -> None:
    integers = ["", "-2", "7", *["0"] * 10]
    categories = ["aa", "aa", "", *["bb"] * 23]
    lines = ["\t".join(["1", *integers, *categories]), "\t".join(["0", *["1"] * 13, *["aa"] * 26])]
    (tmp_path / rows.FILES["criteo-1tb"]).write_bytes(gzip.compress("\n".join(lines).encode()))
    log = read_click_log("criteo-1tb", tmp_path)
    assert log.labels.tolist() == [1, 0]
    assert log.dense[0, :3].tolist() == [0, 0, np.log1p(np.float32(7))]
    assert log.ids[0, 0] == log.ids[1, 0]  # one token of one column
    assert log.ids[0, 0] != log.ids[0, 1]  # one token of two columns
    assert log.ids[0, 2] != log.ids[1, 2]


def test_a_short_line_is_named(tmp_path: Path) -> None:
    (tmp_path / rows.FILES["criteo-1tb"]).write_bytes(gzip.compress(b"1\t2\n"))
    with pytest.raises(SuiteError, match=r"day0_10000\.tsv\.gz:1: 2 columns"):
        read_click_log("criteo-1tb", tmp_path)


def test_positives_are_dropped_down_to_a_share() -> None:
    labels = np.zeros(10_000, dtype=np.float32)
    labels[::4] = 1
    log = ClickLog(labels=labels, dense=np.arange(10_000.0)[:, None], ids=np.zeros((10_000, 1), dtype=np.uint32))
    thin = thin_positives(log, 0.004)
    assert thin.labels.mean() == pytest.approx(0.004, rel=0.01)
    assert (thin.labels == 0).sum() == 7_500
    assert (np.diff(thin.dense[:, 0]) > 0).all()  # still in time
    with pytest.raises(SuiteError, match="2500 positives"):
        thin_positives(log, 0.5)


def test_standardized_by_training_rows_alone(logs: Path) -> None:
    problem = draw(small(TASKS["kaggle-dlrm"]), 0, logs)
    dense = problem.train.inputs[0]
    torch.testing.assert_close(dense.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
    assert problem.test.inputs[0].mean(0).abs().max() > 1e-3


def test_an_epoch_is_a_permutation_and_the_next_one_another() -> None:
    problem = task("teacher-classes", seed=0)
    order = problem.batches().order.view(-1, len(problem.train))
    assert all(torch.equal(epoch.sort().values, torch.arange(len(problem.train))) for epoch in order)
    assert not torch.equal(order[0], order[1])
    assert len(order) == 11  # ten epochs, and the batch that probes the last step


def test_rows_kept_back_are_never_trained_on() -> None:
    train = task("teacher-classes", seed=0).train
    batches = Batches(train, batch=64, steps=300, seed=0, held_out=0.1)
    kept, trained = set(batches.held_out_rows.tolist()), set(batches.order.tolist())
    assert len(kept) == 480
    assert kept | trained == set(range(4800))
    assert not kept & trained
    assert batches.held_out_rows.equal(Batches(train, batch=64, steps=300, seed=5, held_out=0.1).held_out_rows)
    probe = batches.held_out_batch()
    held = {tuple(row) for row in train.inputs[0][batches.held_out_rows].tolist()}
    assert len(probe) == 64
    assert {tuple(row) for row in probe.inputs[0].tolist()} <= held
    with pytest.raises(SuiteError, match="kept back"):
        task("teacher-classes", seed=0).batches().held_out_batch()


def test_unknown_names_and_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="perhaps digits-mlp"):
        named_task("digit-mlp")
    assert missing_file("digits", None) is None
    assert "no folder" in str(missing_file("frappe", None))
    assert str(tmp_path / "frappe.csv.gz") in str(missing_file("frappe", tmp_path))


def test_the_real_rows_are_enough(real_data: Path) -> None:
    """Of the smallest logs; the label rates are those that are known of them."""
    problem = task("1tb-logistic-epochs", 0, real_data)
    assert problem.train.targets.mean() == pytest.approx(0.0265, abs=0.004)
    assert task("text-gru", 0, real_data).train.targets.shape == (4096, 32)
