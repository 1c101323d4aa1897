"""Settings as options: names of earlier versions, remedies for wrong ones, and what help says of defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer.cli import main
from trainer.cli.arguments import UsageError
from trainer.cli.entry import VERBS
from trainer.cli.settings import current_arguments, settings_for_help
from trainer.learner.config import load_preset


@pytest.mark.parametrize(
    ("arguments", "current"),
    [
        (["run.toml", "--run", "a.b"], ["run.toml", "--run", "a.b"]),
        (["--stepsize.method", "secant"], ["--stepsize.measuring.method", "secant"]),
        (["--stepsize.probe-fraction=0.5"], ["--stepsize.measuring.probe_fraction=0.5"]),
        (["--stepsize.per_group", "--budget.steps", "3"], ["--stepsize.measuring.per_group", "--budget.steps", "3"]),
        (["--stepsize.drift", "0.02", "--data.seed", "1"], ["--data.seed", "1"]),
        (["--stepsize.max_age=None", "--eval.batch_rows", "8192"], []),
    ],
)
def test_options_of_earlier_versions_are_those_of_now(arguments: list[str], current: list[str]) -> None:
    assert current_arguments(arguments, "train") == current


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--optimizer.learning_rate", "1"],
            "--optimizer.learning_rate is not an option; did you mean --optimizer.lr?",
        ),
        (["--budget.step=3"], "--budget.step is not an option; did you mean --budget.steps?; see"),
        (["--stepsize.drift", "0.5"], "--stepsize.drift = 0.5 can no longer be set, it is always 0.02; leave it out"),
        (["--stepsize.clip"], "--stepsize.clip = '' can no longer be set"),
        (
            ["--optimizer.options.momentum", "0.9"],
            "not an option; write optimizer.options.momentum = ... into the file",
        ),
    ],
)
def test_options_that_cannot_be_used_have_a_remedy(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        current_arguments(arguments, "train")
    assert said in str(refused.value)


def test_help_shows_what_the_preset_decides() -> None:
    preset, shown = load_preset("dlrm-tiny"), settings_for_help()
    assert shown.model.table_rows == preset["model"]["table_rows"]
    assert shown.optimizer.lr == preset["optimizer"]["lr"]


def test_help_is_broken_where_the_terminal_ends_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1200")
    for verb, text in [
        ("preprocess", "in the order of time; those of a folder or pattern are put in natural order."),
        ("train", "by default $XDG_CACHE_HOME or ~/.cache, then alphastream. (default: None)"),
        ("study", "[study]. Or the name of one that comes with the package, such as learning-rate-free. (required)"),
    ]:
        assert main([verb, "--help"]) == 0
        assert text in capsys.readouterr().out


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert re.search(rf"^Example: alphastream {verb} ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["report", "DATA"], "DATA is a data folder; give a run directory or a study's folder"),
        (["sample", "DATA"], "DATA is a data folder; give another OUT"),
        (["sample", "RUN"], "RUN is a run directory; give another OUT"),
        (["preprocess", "RUN", "--out", "OTHER"], "RUN is a run directory, whose files are not logs"),
        (["preprocess", "DATA", "--out", "OTHER"], "DATA holds no log files"),
        (["preprocess", "--out", "OTHER"], "no source was named"),
        (["preprocess", "log.tsv"], "--out PATH is missing"),
    ],
)
def test_a_folder_of_another_kind_is_refused(
    command: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("DATA/manifest.json", "RUN/steps.jsonl"):
        Path(file).parent.mkdir()
        Path(file).write_text("{}\n")
    assert main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("OTHER").exists()


def test_a_run_of_an_earlier_version_says_where_its_data_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text('data.path = "shards"\n')
    assert main(["evaluate", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/config.toml: data.path is 'shards', relative to where the run was started" in said
    assert "--data" in said
