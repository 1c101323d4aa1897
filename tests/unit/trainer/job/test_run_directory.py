"""A run directory has one writer, one set of settings once there is a checkpoint, and records that are cut back."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.budget import BudgetConfig
from trainer.config import Config, ConfigError, config_from, load_config
from trainer.job import run_directory
from trainer.job.decided import decided
from trainer.job.run_directory import RunDirectory
from trainer.records.records import read_records


def settings(**sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {"data": {"path": "DATA"}, "model": {"table_rows": 64}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return config_from(values, where="test").resolved()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


def begun(run: Path, config: Config, *, checkpoint: bool) -> None:
    with RunDirectory(run, config) as directory:
        directory.begin(config, records={})
    if checkpoint:
        (run / "checkpoints" / "step-00000004").mkdir(parents=True)


def test_the_settings_are_kept_once_the_run_begins(run: Path) -> None:
    config = settings(optimizer={"lr": 0.25})
    with RunDirectory(run, config) as directory:
        assert not (run / "config.toml").exists()
        directory.begin(config, records={})
    assert load_config(run / "config.toml") == config


@pytest.mark.parametrize("name", ["day_0.tsv", "day_1.TSV.GZ", "part-00000.parquet", "train.csv"])
def test_a_folder_of_data_becomes_no_run(run: Path, name: str) -> None:
    run.mkdir(parents=True)
    (run / name).write_text("1\t2\n")
    with pytest.raises(ConfigError, match=f"holds {name} and no run; give another directory for the run"):
        RunDirectory(run, settings())
    assert [file.name for file in run.iterdir()] == [name]


@pytest.mark.parametrize("name", ["run.toml", "train.log", "notes.txt"])
def test_a_runs_own_notes_may_lie_in_its_folder_before_it_begins(run: Path, name: str) -> None:
    run.mkdir(parents=True)
    (run / name).write_text("seen")
    begun(run, settings(), checkpoint=False)
    assert (run / name).read_text() == "seen"


def test_a_run_that_was_begun_beside_data_goes_on(run: Path) -> None:
    begun(run, settings(), checkpoint=True)
    (run / "steps.csv").write_text("exported")
    RunDirectory(run, settings()).close()


def test_a_second_writer_is_refused_until_the_first_is_gone(run: Path) -> None:
    with RunDirectory(run, settings()), pytest.raises(ConfigError, match="another process is writing"):
        RunDirectory(run, settings())
    RunDirectory(run, settings()).close()


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory(tmp_path / "run", settings())
    with pytest.raises(ConfigError, match=r"cannot be made \(Not a directory\); give another --run"):
        RunDirectory(tmp_path / "run" / "below", settings())


def test_a_data_folder_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    with pytest.raises(ConfigError, match="is a data folder; give another directory for the run"):
        RunDirectory(tmp_path, settings())
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("data", {"batch_rows": 64}, r"data\.batch_rows = 2048, now it is 64"),
        ("data", {"seed": 1}, r"data\.seed = 0, now it is 1"),
        ("model", {"dropout": 0.5}, r"model\.dropout = 0\.0, now it is 0\.5"),
        ("optimizer", {"name": "sgd"}, r"optimizer\.name = 'nadamw', now it is 'sgd'"),
        ("optimizer", {"average": "ema"}, r"optimizer\.average = 'none'"),
    ],
)
def test_what_a_run_learns_from_and_with_may_not_change(
    run: Path, section: str, values: dict[str, Any], said: str
) -> None:
    begun(run, settings(), checkpoint=True)
    with pytest.raises(ConfigError, match=said):
        RunDirectory(run, settings(**{section: values}))
    RunDirectory(run, settings()).close()


@pytest.mark.parametrize(
    ("section", "values", "changes"),
    [
        ("optimizer", {"lr": 3.0}, [("optimizer.lr", 3.0, 0.008)]),
        ("schedule", {"name": "constant"}, [("schedule.name", "constant", "warmup_cosine")]),
        (
            "stepsize",
            {"policy": "ema", "interval": 50},
            [("stepsize.policy", "ema", "observe"), ("stepsize.interval", 50, 100)],
        ),
        ("divergence", {"rollbacks": 6}, [("divergence.rollbacks", 6, 3)]),
        ("checkpoint", {"keep": 1}, [("checkpoint.keep", 1, 3)]),
        ("data", {"read_threads": 1}, []),
    ],
)
def test_what_is_set_anew_is_told_with_what_it_was(
    run: Path, section: str, values: dict[str, Any], changes: list[Any]
) -> None:
    begun(run, settings(), checkpoint=True)
    with RunDirectory(run, settings(**{section: values})) as directory:
        assert directory.changes == changes


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("data", {"path": "ELSEWHERE"}),
        ("data", {"prefetch_batches": 9, "read_threads": 1, "damaged": "skip"}),
        ("budget", {"steps": 9}),
        ("eval", {"every_steps": 3}),
        ("checkpoint", {"keep": 1}),
        ("metrics", {"port": -1}),
    ],
)
def test_what_changes_no_number_may_change(run: Path, section: str, values: dict[str, Any]) -> None:
    begun(run, settings(), checkpoint=True)
    config = settings(**{section: values})
    with RunDirectory(run, config) as directory:
        directory.begin(config, records={})
    assert load_config(run / "config.toml") == config


def test_writing_out_what_a_preset_decides_is_no_change(run: Path) -> None:
    begun(run, settings(), checkpoint=True)
    RunDirectory(run, settings(optimizer={"lr": 0.008}, model={"embedding_dim": 16})).close()


def test_without_a_checkpoint_any_settings_will_do(run: Path) -> None:
    begun(run, settings(), checkpoint=False)
    config = settings(optimizer={"lr": 3.0})
    with RunDirectory(run, config) as directory:
        directory.begin(config, records={})
    assert load_config(run / "config.toml").optimizer.lr == 3.0


def test_settings_of_another_version_name_the_file_and_the_way_out(run: Path) -> None:
    begun(run, settings(), checkpoint=True)
    kept = run / "config.toml"
    kept.write_text(kept.read_text().replace("seed = 0", "seed = 0\nold_key = 3"))
    with pytest.raises(ConfigError, match=r"config\.toml: unknown key 'data\.old_key'.* delete it") as refused:
        RunDirectory(run, settings())
    assert "\n" not in str(refused.value)
    kept.unlink()
    RunDirectory(run, settings()).close()


def test_records_are_cut_back_and_the_event_log_is_not(run: Path) -> None:
    config = settings()
    with RunDirectory(run, config) as directory:
        directory.begin(config, records={})
        directory.records["steps"].append({"step": 0})
        directory.event("checkpoint", step=1)
        lengths = directory.lengths()
        directory.records["steps"].append({"step": 1})
        directory.records["evals"].append({"step": 2})
        directory.event("stop", step=2)
    assert set(lengths) == {"steps", "alpha", "horizon", "evals", "events", "extents"}
    with RunDirectory(run, config) as directory:
        directory.begin(config, records=lengths)
    assert [record["step"] for record in read_records(run / "steps.jsonl")] == [0]
    assert list(read_records(run / "evals.jsonl")) == []
    events = list(read_records(run / "events.jsonl"))
    assert [event["event"] for event in events] == ["checkpoint", "stop"]
    assert events[0]["time"] <= events[1]["time"]


def test_a_record_that_cannot_be_closed_keeps_no_lock(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(run, settings())

    def full(_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(type(directory.records["events"]), "close", full)
    with pytest.raises(OSError, match="No space"):
        directory.close()
    monkeypatch.undo()
    RunDirectory(run, settings()).close()


def test_auto_without_a_budget_averages_unless_the_run_began_without(run: Path) -> None:
    endless = config_from({"data": {"path": "DATA"}, "stepsize": {"policy": "auto"}}, where="test")
    assert decided(endless, run).optimizer.average == "ema"
    assert decided(replace(endless, budget=BudgetConfig(steps=9)), run).optimizer.average == "none"
    begun(run, settings(), checkpoint=True)
    assert decided(endless, run).optimizer.average == "none"


def test_training_goes_on_while_old_records_are_merged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(records={"full_steps": 8}, checkpoint={"every_steps": 100})
    began, go_on, inside = threading.Event(), threading.Event(), run_directory.thinning

    def held(*arguments: Any, **options: Any) -> Any:
        began.set()
        assert go_on.wait(60)
        return inside(*arguments, **options)

    monkeypatch.setattr(run_directory, "thinning", held)
    with RunDirectory(run, config) as directory:
        directory.begin(config, records={})
        for step in range(32):
            directory.records["steps"].append({"step": step, "rows": 8, "seconds": 0.5, "phases": {}, "loss": 0.5})
        directory.thin(done=32)
        assert began.wait(60)
        directory.records["steps"].append({"step": 32, "rows": 8, "seconds": 0.5, "phases": {}, "loss": 0.5})
        directory.flush()
        assert sum(1 for _ in read_records(run / "steps.jsonl")) == 32
        go_on.set()
        directory.sync()
        found = list(read_records(run / "steps.jsonl"))
        assert len(found) < 33
        assert sum(line.get("steps", 1) for line in found) == 33


def test_what_goes_wrong_in_merging_is_not_lost_in_its_thread(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(run_directory, "thinning", broken)
    with pytest.raises(RuntimeError, match="broken"), RunDirectory(run, settings(records={"full_steps": 8})) as found:
        found.thin(done=8)
