"""All ways to α* that the cost study times give the same α*, and its ratios are those of a round."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from stepsize import set_learning_rate
from trainer.cli import main
from trainer.learner import ModelConfig
from trainer.study.cost import table as cost
from trainer.study.cost.ways import CHECKED, JVP, ORIGINAL_OPERATOR, ORIGINAL_REST, PLAIN, PRODUCT, SECANT, Ways

SMALL = ["--preset", "dlrm-tiny", "--table-rows", "100", "--batch-rows", "16", "--rounds", "1", "--device", "cpu"]


def test_all_ways_give_the_same_step() -> None:
    pytest.importorskip("curvlinops")
    model = ModelConfig(preset="dlrm-tiny", table_rows=100)
    ways = Ways(model, batch_rows=32, device=torch.device("cpu"), curvlinops=True)
    set_learning_rate(ways.optimizer, 1e-5)  # the secant's error is of first order in the step
    b1, b2 = ways.batch(), ways.batch()
    ways.gradient(b2)
    before = [p.detach().clone() for p in ways.model.parameters()]
    for worker in ways.workers.values():
        worker.before_step(*b1, step=0)
    ways.optimizer.step()
    for worker in ways.workers.values():
        worker.after_step()
    found = [worker.poll()[0].relative for worker in ways.workers.values()]
    after = [p.detach().clone() for p in ways.model.parameters()]
    direction = [new - old for new, old in zip(after, before, strict=True)]
    with torch.no_grad():
        for p, old in zip(ways.model.parameters(), before, strict=True):
            p.copy_(old)
    dense = [ways.by_curvlinops(b1, direction, check=check) for check in (False, True)]
    assert dense[0] == pytest.approx(dense[1], rel=1e-6)
    assert found[0] == pytest.approx(dense[0], rel=1e-4)
    assert found[1] == pytest.approx(dense[0], rel=2e-2)  # a difference of float32 logits


def test_ratios_are_of_a_round_and_wholes_are_sums() -> None:
    turns = [
        {PLAIN: 1.0, JVP: 0.5, SECANT: 0.4, PRODUCT: 2.0, CHECKED: 9.0, ORIGINAL_OPERATOR: 60.0, ORIGINAL_REST: 8.0},
        {PLAIN: 2.0, JVP: 1.2, SECANT: 0.8, PRODUCT: 4.0, CHECKED: 9.0, ORIGINAL_OPERATOR: 90.0, ORIGINAL_REST: 8.0},
        {PLAIN: 4.0, JVP: 1.6, SECANT: 1.6, PRODUCT: 8.0, CHECKED: 9.0, ORIGINAL_OPERATOR: 120.0, ORIGINAL_REST: 8.0},
    ]
    rows = {row[0]: row[1:] for row in cost.cost_table(turns).rows}
    assert rows[JVP] == (1.2, 0.5, 0.4, 0.6, None, None)
    assert rows[cost.WITH_JVP] == (3.2, 1.5, 1.4, pytest.approx(1.6), None, None)
    whole = rows[cost.WITH_ORIGINAL]
    assert whole[:4] == (100.0, 50.0, 33.0, 69.0)
    assert whole[5] == pytest.approx(70.47, abs=0.01)  # 70 times the plain step, as published
    assert list(rows) == list(cost.ORDER)


def test_page_and_table_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("curvlinops")
    assert main(["study", "cost", "--out", str(tmp_path), *SMALL]) == 0
    said = capsys.readouterr().out
    with (tmp_path / "cost.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == list(cost.ORDER)
    for row in rows:
        assert row["part"] in said
        assert float(row["over_the_plain_step"]) > 0
    assert (tmp_path / "cost.png").is_file()
    assert "table of 100 rows" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_without_curvlinops_its_rows_are_missing_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "find_spec", lambda _: None)
    assert main(["study", "cost", "--out", str(tmp_path), *SMALL]) == 0
    with (tmp_path / "cost.csv").open(encoding="utf-8") as file:
        assert [row["part"] for row in csv.DictReader(file)] == [PLAIN, JVP, SECANT, cost.WITH_JVP]
    assert "curvlinops is not installed" in capsys.readouterr().err
    assert "curvlinops is not installed" in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds is 0; give at least 1"),
        (["--threads", "0"], "--threads is 0; give at least 1"),
        (["--preset", "dlrm-huge"], "dlrm-huge"),
        (["--round", "1"], "--round is not an option (did you mean --rounds?)"),
        (["--device", "tpu"], "--device is 'tpu'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "cost", "--out", str(tmp_path / "out"), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()
