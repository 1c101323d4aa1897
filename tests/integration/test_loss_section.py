"""A run with a [loss] section: one loss for the step and for α*, answers of the whole log, and a resume to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch.nn import functional

from pipeline.device import open_rows
from pipeline.shards import Manifest
from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.records import read_records
from trainer.serving import evaluate_run, open_run

LOSS = """
[schedule]
name = "constant"
[loss]
positive_weight = 2.0
label_smoothing = 0.05
negatives_kept = 0.2
[eval]
rows = 256
[stepsize]
policy = "median_hold"
interval = 5
count = 4
start = 2
[budget]
steps = {steps}
"""


def test_a_run_goes_on_to_the_bit_and_answers_for_the_whole_log(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = write_config(LOSS.format(steps=30), data="batch_rows = 512")
    assert main(["train", str(config), "--run", str(whole)]) == 0
    assert main(["train", str(config), "--run", str(cut), "--budget.steps", "13"]) == 0
    assert main(["train", str(config), "--run", str(cut)]) == 0
    (tensors, steps, estimates), (tensors_cut, steps_cut, estimates_cut) = lasting(whole), lasting(cut)
    assert steps == steps_cut
    assert estimates == estimates_cut
    assert same_bits(tensors, tensors_cut)

    # α* is measured of what is trained: on average over the steps their losses agree
    trained = {record["step"]: record["loss"] for record in read_records(whole / "steps.jsonl")}
    measured = {record["step"]: record["loss"] for record in read_records(whole / "alpha.jsonl")}
    both = [(loss, trained[step]) for step, loss in measured.items()]
    assert len(both) >= 20
    assert mean(one for one, _ in both) == pytest.approx(mean(other for _, other in both), rel=0.05)

    step, found = evaluate_run(whole, split="test", rows=256, data=None)
    assert step == 30
    opened = open_run(whole)
    manifest = Manifest.load(opened.config.data.path)
    learner = opened.learner
    rows = {"table_rows": learner.table_rows, "device": learner.device, "split": "test"}
    [batch] = open_rows(opened.config.data, manifest, **rows, batch_rows=256, limit_rows=256)
    with learner.answering() as model, torch.no_grad():
        answered = model(batch.dense, batch.ids).double()
        inside = learner.model(batch.dense, batch.ids).double()
    odds = inside.exp() * 0.2
    torch.testing.assert_close(answered.sigmoid(), odds / (1 + odds), rtol=1e-5, atol=1e-7)
    weights = torch.where(batch.label > 0.5, 1.0, 5.0).double()
    losses = functional.binary_cross_entropy_with_logits(answered, batch.label.double(), reduction="none")
    assert found.loss == pytest.approx(((losses * weights).sum() / weights.sum()).item(), rel=1e-9)
    plain = replace(learner, loss=replace(learner.loss, negatives_kept=None))
    with plain.answering() as model:
        assert model is learner.model

    capsys.readouterr()
    assert main(["train", str(config), "--run", str(cut), "--loss.negatives_kept", "0.3"]) == 2
    told = capsys.readouterr().err
    assert "was started with loss.negatives_kept = 0.2, now it is 0.3" in told
    assert "another loss" in told


def test_a_setting_out_of_range_is_told_in_one_line(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config("[loss]\nnegatives_kept = 0.0")
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            "loss.negatives_kept is 0.0; give the share of the rows of label 0 that were kept, from 0.000001 to 1"
        )
    )
