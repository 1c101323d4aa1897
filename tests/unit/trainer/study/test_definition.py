"""A study file unfolds into exactly the runs it describes, and says what is wrong with it."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.config import ConfigError, config_to_toml
from trainer.study.definition import RESOLVED, Study, StudyFile, read_study, shipped_studies

BASE = '[data]\npath = "DATA"\nbatch_rows = 64\n[optimizer]\neps = 1e-7\n'
GRID = """
[study]
seeds = [3, 5]
[[study.arm]]
name = "grid"
[study.arm.set]
"optimizer.lr" = [1e-3, 1]
"model.top" = [[8, 1], [16, 1]]
"optimizer.betas" = [0.8, 0.9]
[[study.arm]]
name = "one"
set.stepsize = { policy = "ema" }
"""


def study_file(folder: Path, text: str, *, base: str = BASE) -> StudyFile:
    (folder / "my.toml").write_text(base + text, encoding="utf-8")
    return read_study(folder / "my.toml")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_file(tmp_path, GRID).unfold()


def test_every_combination_is_run_with_every_seed(study: Study) -> None:
    assert [run.name for run in study.runs] == [
        f"{name}seed{seed}"
        for seed in (3, 5)
        for name in (
            "grid/lr=0.001,top=8x1-",
            "grid/lr=0.001,top=16x1-",
            "grid/lr=1,top=8x1-",
            "grid/lr=1,top=16x1-",
            "one/",
        )
    ]
    assert study.varied == {"grid": ("optimizer.lr", "model.top"), "one": ()}


def test_a_run_has_the_base_the_arm_and_the_seed(study: Study) -> None:
    grid, one = study.runs[1].config, study.runs[-1].config
    assert (grid.optimizer.lr, grid.model.top, grid.data.seed) == (1e-3, (16, 1), 3)
    assert grid.optimizer.betas == (0.8, 0.9)
    assert (one.optimizer.lr, one.stepsize.policy, one.data.seed) == (None, "ema", 5)
    for config in (grid, one):
        assert (config.data.batch_rows, config.optimizer.eps, config.metrics.port) == (64, 1e-7, -1)


def test_values_are_those_the_run_will_use(study: Study) -> None:
    assert study.runs[2].values == {"optimizer.lr": 1.0, "model.top": (8, 1)}
    # the arm that does not vary them has what the preset says
    assert study.runs[-1].values == {"optimizer.lr": 0.008, "model.top": (64, 32, 1)}


def test_the_resolved_file_is_the_same_study(study: Study, tmp_path: Path) -> None:
    (tmp_path / RESOLVED).write_text(study.to_toml(), encoding="utf-8")
    again = read_study(tmp_path / RESOLVED).unfold()
    assert [(run.name, config_to_toml(run.config)) for run in again.runs] == [
        (run.name, config_to_toml(run.config)) for run in study.runs
    ]
    assert again.settings == study.settings


def test_overrides_reach_every_run(tmp_path: Path) -> None:
    file = study_file(tmp_path, GRID)
    base = replace(file.base, data=replace(file.base.data, path="ELSEWHERE", batch_rows=8))
    assert {(run.config.data.path, run.config.data.batch_rows) for run in file.unfold(base).runs} == {("ELSEWHERE", 8)}


def test_what_an_arm_sets_cannot_be_overridden(tmp_path: Path) -> None:
    file = study_file(tmp_path, GRID)
    base = replace(file.base, optimizer=replace(file.base.optimizer, lr=0.5))
    with pytest.raises(ConfigError, match=r"my\.toml: optimizer\.lr is set by arm 'grid'"):
        file.unfold(base)


def test_keys_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    keys = '"eval.rows" = [1, 2], "budget.steps" = [3, 4], "schedule.steps" = [5, 6]'
    text = f'[[study.arm]]\nname = "a"\nset = {{{keys}}}'
    names = {run.name for run in study_file(tmp_path, text).unfold().runs}
    assert "a/rows=1,budget.steps=3,schedule.steps=5-seed0" in names
    assert len(names) == 8


def test_values_become_names_that_any_file_system_takes(tmp_path: Path) -> None:
    text = '[[study.arm]]\nname = "a"\nset = {"data.path" = ["/x/y", "z z"]}'
    assert [run.name for run in study_file(tmp_path, text).unfold().runs] == ["a/path=-x-y-seed0", "a/path=z-z-seed0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no [study] section"),
        ("[study]", "study.arm"),
        ("[study]\narm = []", "study.arm is empty"),
        ('[study]\nseed = [1]\narm = [{name = "a"}]', "'study.seed'; did you mean 'study.seeds'"),
        ('[study]\nseeds = "many"\narm = [{name = "a"}]', "study.seeds"),
        ('[study]\nseeds = [1, 1]\narm = [{name = "a"}]', "study.seeds"),
        ('[study]\nwithin_steps = [0]\narm = [{name = "a"}]', "study.within_steps"),
        ('[[study.arm]]\nname = "a/b"', "study.arm.name is 'a/b'"),
        ('[[study.arm]]\nname = "a"\n[[study.arm]]\nname = "a"', "'a' is there twice"),
        ('[[study.arm]]\nname = "a"\nsett = {}', "'study.arm.sett'; did you mean 'study.arm.set'"),
        ('[[study.arm]]\nname = "a"\nset = {"data.seed" = [1, 2]}', "study.seeds"),
        ('[[study.arm]]\nname = "a"\nset = {"optimizer.lr" = []}', "optimizer.lr"),
        ('[[study.arm]]\nname = "a"\nset = {"optimizer.lrr" = 1.0}', "arm 'a': unknown key 'optimizer.lrr'"),
        ('[[study.arm]]\nname = "a"\nset = {"lr" = 1.0}', "did you mean 'optimizer.lr'"),
        ('[[study.arm]]\nname = "a"\nset = {"optimizer.lr" = [1.0, "x"]}', "arm 'a': optimizer.lr"),
        ('[[study.arm]]\nname = "a"\nset = {"optimizer.lr" = [0.5, 0.5]}', "'a/lr=0.5-seed0'; vary values that differ"),
        ('[[study.arm]]\nname = "a"\nset = {"data.path.x" = 1}', "arm 'a': data.path"),
        ('[[study.arm]]\nname = "a"\nset = {"model.embedding_dim" = [4, 8], "model.bottom" = [[2]]}', "model.bottom"),
        ("[budget]\nstep = 1\n[study]\narm = [{name = 'a'}]", "unknown key 'budget.step'"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        study_file(tmp_path, text).unfold()
    assert said in str(caught.value)
    assert "my.toml" in str(caught.value)


def test_a_study_without_data_path_asks_for_it(tmp_path: Path) -> None:
    file = study_file(tmp_path, '[[study.arm]]\nname = "a"', base="")
    with pytest.raises(ConfigError, match=r"my\.toml: data\.path is missing.* --data\.path"):
        file.unfold()
    run = file.unfold(replace(file.base, data=replace(file.base.data, path="DATA"))).runs[0]
    assert run.config.data.path == "DATA"


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_need_nothing_but_data(name: str) -> None:
    file = read_study(name)
    study = file.unfold(replace(file.base, data=replace(file.base.data, path="DATA")))
    assert study.settings.question.endswith("?")
    assert f"alphastream study {name} --out DIR --data.path DATA" in file.path.read_text(encoding="utf-8")


def test_the_shipped_studies_are_those_promised() -> None:
    assert {"learning-rate-free", "thesis-apply", "thesis-observe"} <= set(shipped_studies())
    with pytest.raises(ConfigError, match=rf"no such study file.*{', '.join(shipped_studies())}"):
        read_study("thesis")


def test_learning_rate_free_compares_each_guess_with_a_grid_of_nine_rates() -> None:
    file = read_study("learning-rate-free")
    runs = file.unfold(replace(file.base, data=replace(file.base.data, path="DATA"))).runs
    schedule = [run.config for run in runs if run.arm == "schedule"]
    auto = [run.config for run in runs if run.arm == "auto"]
    assert len({config.optimizer.lr for config in schedule}) == 9
    assert {config.optimizer.average for config in auto} <= {config.optimizer.average for config in schedule}
    assert {config.optimizer.lr for config in auto} == {1e-6, 1e-4, 1e-2, 1.0}
    assert {config.data.seed for config in auto} == {config.data.seed for config in schedule} == {0, 1, 2}
    assert {config.stepsize.policy for config in schedule} == {"none"}


def test_the_thesis_grid_is_complete() -> None:
    file = read_study("thesis-apply")
    runs = file.unfold(replace(file.base, data=replace(file.base.data, path="DATA"))).runs
    for arm in ("alpha", "alpha-seconds"):
        grid = {(run.values["stepsize.interval"], run.values["stepsize.count"]) for run in runs if run.arm == arm}
        assert grid == {(interval, count) for interval in (1000, 2000, 5000) for count in (10, 25, 50)}
    assert tomllib.loads(file.path.read_text())["study"]["within_seconds"] == [13_699.45]
