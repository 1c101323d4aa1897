"""A scaled study keeps its proportions, says what became what, and refuses what it cannot keep."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from trainer.config import ConfigError
from trainer.study.definition import RESOLVED, StudyFile, read_study, shipped_studies
from trainer.study.grid import settings_of
from trainer.study.scaling import scale_of

KAGGLE_ROWS = 109_713
ALL_ROWS = 4_195_197_692


def arm(file: StudyFile, name: str) -> dict[str, list[object]]:
    return dict(settings_of(next(each.set for each in file.settings.arm if each.name == name)))


@pytest.mark.parametrize(
    ("scale", "intervals", "counts"),
    [
        ("1/20", [50, 100, 250], [10, 25, 50]),  # every interval has room for the published counts
        ("1/50", [20, 40, 100], [4, 10, 20]),
        ("1/100", [10, 20, 50], [2, 5, 10]),
    ],
)
def test_the_grid_keeps_its_proportions(scale: str, intervals: list[int], counts: list[int]) -> None:
    file = read_study("thesis-apply").scaled(scale_of(scale), train_rows=KAGGLE_ROWS)
    for name in ("alpha", "alpha-seconds"):
        settings = arm(file, name)
        assert settings["stepsize.interval"] == intervals
        assert settings["stepsize.count"] == counts
        assert max(counts) <= min(intervals)
        assert settings["stepsize.start"] == [round(2000 * Fraction(scale))]
    steps = round(85_328 * Fraction(scale))
    assert arm(file, "schedule")["budget.steps"] == [steps]
    assert file.settings.within_steps == (round(42_664 * Fraction(scale)),)
    assert file.base.schedule.steps == steps
    [rate] = arm(file, "schedule")["optimizer.lr"]
    assert isinstance(rate, float)
    assert rate * steps == pytest.approx(2.19e-4 * 85_328, rel=1e-3)
    assert file.base.model.table_rows == round(4_194_304 * Fraction(scale))


def test_counts_of_a_base_meet_the_intervals_of_the_base() -> None:
    file = read_study("thesis-observe").scaled(scale_of("1/50"), train_rows=KAGGLE_ROWS)
    assert (file.base.stepsize.interval, file.base.stepsize.count) == (20, 20)
    assert file.base.eval.every_steps == 40
    assert file.base.optimizer.lr == pytest.approx(2.19e-4 * 50)


def test_a_run_passes_over_the_same_share_of_its_rows() -> None:
    for scale in ("1/20", "1/100"):
        base = read_study("thesis-observe").scaled(scale_of(scale), train_rows=KAGGLE_ROWS).base
        assert base.budget.steps is not None
        passes = base.data.batch_rows * base.budget.steps / KAGGLE_ROWS
        assert passes == pytest.approx(32_768 * 85_328 / ALL_ROWS, rel=0.03)


def test_of_all_rows_a_batch_is_scaled_like_the_steps() -> None:
    base = read_study("thesis-observe").scaled(scale_of("1/100"), train_rows=ALL_ROWS).base
    assert base.data.batch_rows == 328


def test_what_was_scaled_is_said_and_kept(tmp_path: Path) -> None:
    file = read_study("thesis-apply").scaled(scale_of("0.01"), train_rows=KAGGLE_ROWS)
    said = {(each.key, each.arm): (each.was, each.now) for each in file.settings.scaled}
    assert said["model.preset", ""] == ("dlrm-small", "dlrm-tiny")
    assert said["data.batch_rows", ""] == ("32,768", "86")
    assert said["stepsize.count", "alpha"] == ("10, 25, 50", "2, 5, 10")
    study = file.unfold(replace(file.base, data=replace(file.base.data, path="DATA")))
    (tmp_path / RESOLVED).write_text(study.to_toml(), encoding="utf-8")
    again = read_study(tmp_path / RESOLVED)
    assert again.settings == study.settings
    assert again.settings.scale is None  # it cannot be scaled twice
    assert again.unfold() == study


def test_unscaled_is_unchanged() -> None:
    file = read_study("thesis-apply")
    assert file.scaled(scale_of("1"), train_rows=KAGGLE_ROWS) == file


@pytest.mark.parametrize("text", ["0", "-1/2", "2", "half", "1/0", "nan"])
def test_a_scale_is_a_fraction_of_at_most_one(text: str) -> None:
    with pytest.raises(ConfigError, match="--scale is"):
        scale_of(text)


def test_values_that_would_become_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stepsize.count = 10, 25, 50 would become 1, 1, 2; give a larger scale"):
        read_study("thesis-apply").scaled(scale_of("1/500"), train_rows=KAGGLE_ROWS)


@pytest.mark.parametrize("name", sorted({*shipped_studies()} - {"thesis-apply", "thesis-observe"}))
def test_other_studies_are_refused_in_a_line(name: str) -> None:
    with pytest.raises(ConfigError, match="thesis-apply and thesis-observe do") as refused:
        read_study(name).scaled(scale_of("1/2"), train_rows=1)
    assert "\n" not in str(refused.value)


def test_a_clock_names_an_arm(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('[[study.arm]]\nname = "a"\n[study.clock]\narm = "b"\nseconds = 1.0\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"study.clock.arm is 'b'; give one of a"):
        read_study(path)
    path.write_text('[[study.arm]]\nname = "a"\n[study.scale]\nmultiply = []\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"study.scale.multiply.*did you mean 'study.scale.multiplied'"):
        read_study(path)
