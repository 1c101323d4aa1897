"""Every way of measuring α* that [stepsize] offers, from the configuration to alpha.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stepsize.worker import first_rows
from trainer.cli import main
from trainer.records import RunHistory, read_records
from trainer.step import first_click_rows

Estimates = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def estimates(write_config: Callable[..., Path], tmp_path: Path) -> Estimates:
    """The lines of alpha.jsonl of three steps with further [stepsize.measuring] settings."""

    def train(settings: str) -> list[dict[str, Any]]:
        config = write_config(
            '[budget]\nsteps = 3\n[eval]\nsplits = []\n[stepsize]\npolicy = "observe"\n'
            f"[stepsize.measuring]\n{settings}"
        )
        assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0
        return list(read_records(tmp_path / "run" / "alpha.jsonl"))

    return train


def test_nothing_more_is_recorded_than_was_asked_for(estimates: Estimates) -> None:
    for record in estimates(""):
        assert record["rows"] == 64
        assert record.keys().isdisjoint({"biased", "hybrid", "groups", "diagnostics"})


def test_groups_and_diagnostics_are_nested_objects(estimates: Estimates, tmp_path: Path) -> None:
    records = estimates('per_group = true\ndiagnostics = "full"')
    assert len(records) == 3
    for record in records:
        [group] = record["groups"]  # DLRM's optimizer has one group, so its α* is the whole's
        assert group.keys() == {"slope", "curvature", "relative", "absolute", "standard_error"}
        assert group["slope"] == pytest.approx(record["slope"], rel=1e-4)
        assert record["diagnostics"].keys() == {
            "loss_b2",
            "gradient_norm_b1",
            "gradient_norm_b2",
            "direction_norm",
            "cosine_b1",
            "cosine_b2",
        }
        assert all(isinstance(value, float) for value in record["diagnostics"].values())
        d, g1 = record["diagnostics"]["direction_norm"], record["diagnostics"]["gradient_norm_b1"]
        assert record["diagnostics"]["cosine_b1"] * d * g1 == pytest.approx(record["slope"], rel=1e-3)
    losses = [record["loss"] for record in read_records(tmp_path / "run" / "steps.jsonl")]
    assert [record["diagnostics"]["loss_b2"] for record in records] == pytest.approx(losses, rel=1e-5)
    assert len(RunHistory.load(tmp_path / "run").alpha["step"]) == 3, "the run's readers take such lines"


def test_a_share_of_the_probe_rows(estimates: Estimates) -> None:
    assert [record["rows"] for record in estimates("probe_fraction = 0.25")] == [16, 16, 16]


def test_the_secant_is_near_the_derivative_at_a_small_step(estimates: Estimates, tmp_path: Path) -> None:
    small = "\n[optimizer]\nlr = 1e-5"
    exact = estimates(small)
    (tmp_path / "run").rename(tmp_path / "jvp")
    secant = estimates(f'method = "secant"{small}')
    for one, other in zip(exact, secant, strict=True):
        assert other["relative"] != one["relative"]
        assert other["relative"] == pytest.approx(one["relative"], rel=0.02)


def test_bfloat16_measures_nearly_the_same_of_the_same_training(estimates: Estimates, tmp_path: Path) -> None:
    exact = estimates("")
    (tmp_path / "run").rename(tmp_path / "float32")
    for one, other in zip(exact, estimates('precision = "bfloat16"'), strict=True):
        assert other["slope"] != one["slope"]
        assert abs(other["relative"] - one["relative"]) < 0.25 * one["standard_error"]
    losses = [[record["loss"] for record in read_records(tmp_path / run / "steps.jsonl")] for run in ("run", "float32")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("curvature", ["hessian", "fisher", "empirical_fisher"])
def test_another_curvature_stands_in_its_place(estimates: Estimates, tmp_path: Path, curvature: str) -> None:
    pytest.importorskip("curvlinops")
    ggn = estimates("")
    (tmp_path / "run").rename(tmp_path / "ggn")
    other = estimates(f'curvature = "{curvature}"')
    assert [record["slope"] for record in other] == pytest.approx([record["slope"] for record in ggn], rel=1e-4)
    assert all(a["curvature"] != b["curvature"] for a, b in zip(ggn, other, strict=True))
    assert all(record["standard_error"] is None for record in other)


def test_an_option_that_contradicts_another_stops_the_run(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config('[stepsize.measuring]\nmethod = "secant"\nper_group = true')
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 2
    assert "stepsize.measuring: method: 'secant'" in capsys.readouterr().err


def test_rows_are_cut_by_their_place_and_not_by_their_number() -> None:
    """26 rows of 26 columns: what looks for a dimension of the batch's length would cut the columns."""
    dense, ids, label = torch.rand(26, 13), torch.arange(26 * 26).reshape(26, 26), torch.rand(26)
    (few_dense, few_ids), few_label = first_click_rows((dense, ids), label, 5)
    assert torch.equal(few_dense, dense[:5])
    assert torch.equal(few_ids, ids[:, :5])
    assert torch.equal(few_label, label[:5])
    assert first_rows((dense, ids), label, 5)[0][1].shape == (5, 26)
