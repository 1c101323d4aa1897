"""The configuration: TOML there and back, and one line that names the key for whatever is wrong with it."""

from __future__ import annotations

import inspect
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from stepsize.options import MeasuringOptions
from stepsize.policies.auto import Auto
from stepsize.policies.ema import Ema
from stepsize.policies.rates import Bounds
from trainer.config import (
    FIXED_KEYS,
    Config,
    ConfigError,
    config_errors,
    config_from,
    config_to_toml,
    differing_keys,
    load_config,
)

FULL = """
[data]
path = "DATA"
batch_rows = 512
probe_rows = 256
pairing = "disjoint"
seed = 7
[model]
preset = "dlrm-small"
bottom = [8, 4]
embedding_dim = 4
[optimizer]
name = "sgd"
lr = 0.5
options = { momentum = 0.9 }
average = "ema"
[schedule]
name = "linear"
steps = 100
[stepsize]
policy = "median_hold"
interval = 50
count = 5
[stepsize.measuring]
estimators = ["unbiased", "biased"]
[budget]
steps = 10
seconds = 2.5
[eval]
splits = ["train"]
every_seconds = 1
[checkpoint]
keep = 2
[metrics]
host = "::1"
port = 0
"""


def from_toml(text: str) -> Config:
    return config_from(tomllib.loads(text), where="run.toml")


@pytest.mark.parametrize("text", ['data.path = "DATA"', FULL])
@pytest.mark.parametrize("resolved", [False, True])
def test_toml_there_and_back(text: str, resolved: bool) -> None:
    config = from_toml(text)
    config = config.resolved() if resolved else config
    assert from_toml(config_to_toml(config)) == config


def test_toml_has_the_defaults_too() -> None:
    written = tomllib.loads(config_to_toml(from_toml('data.path = "DATA"')))
    assert (written["data"]["batch_rows"], written["stepsize"]["interval"]) == (2048, 100)
    assert "probe_rows" not in written["data"], "TOML has no null"


def test_keys_of_earlier_versions_are_read_under_their_present_names() -> None:
    earlier = from_toml(
        '[data]\npath = "DATA"\n[stepsize]\npolicy = "observe"\npooling = 100\nmax_rate = 1.0\nprobe_fraction = 0.5\n'
        'estimators = ["unbiased", "biased"]\nmeasuring = { diagnostics = "full" }'
    )
    assert earlier.stepsize.measuring == MeasuringOptions(
        estimators=("unbiased", "biased"), probe_fraction=0.5, diagnostics="full"
    )
    assert "pooling" not in config_to_toml(earlier)


def test_what_can_no_longer_be_set_has_the_value_that_earlier_versions_wrote() -> None:
    assert {key: value for key, value in FIXED_KEYS.items() if key != "stepsize.max_age"} == {
        "stepsize.pooling": inspect.signature(Ema).parameters["pooling"].default,
        "stepsize.drift": inspect.signature(Auto).parameters["drift"].default,
        "stepsize.clip": inspect.signature(Auto).parameters["clip"].default,
        "stepsize.min_rate": Bounds().low,
        "stepsize.max_rate": Bounds().high,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_rate = 0.5", r"run\.toml: stepsize\.max_rate = 0\.5, but it can no longer be set, and is 1\.0; leave it"),
        ("max_age = 3", r"stepsize\.max_age = 3, but it can no longer be set"),
        ('method = "jvp"\nmeasuring = { method = "jvp" }', r"stepsize\.method and stepsize\.measuring\.method are the"),
        ('method = "jvp"\nmeasuring = "x"', "unknown key 'stepsize.method'"),
        ('method = "jvpp"', r"stepsize\.measuring"),
    ],
)
def test_earlier_keys_that_cannot_be_heeded_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        from_toml(f'data.path = "DATA"\n[stepsize]\n{text}')
    assert "\n" not in str(refused.value)


def test_every_section_has_defaults_but_the_path() -> None:
    config = from_toml('data.path = "DATA"')
    assert [section.name for section in fields(config)] == [
        *("data", "model", "optimizer", "schedule", "stepsize", "budget", "eval", "checkpoint", "metrics")
    ]
    assert config.metrics.host == "127.0.0.1"


def test_resolved_writes_out_what_the_preset_decides() -> None:
    config = from_toml('data.path = "DATA"\nmodel.preset = "dlrm-small"\noptimizer.lr = 0.5').resolved()
    assert (config.model.table_rows, config.model.embedding_dim) == (4_194_304, 128)
    assert config.optimizer.lr == 0.5
    assert config.optimizer.weight_decay == pytest.approx(0.08121616522670176)
    assert config.resolved() == config


def test_the_path_may_come_later_but_must_come() -> None:
    with pytest.raises(ConfigError, match=r"data\.path is missing"):
        from_toml("budget.steps = 3").resolved()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget.step = 3", "unknown key 'budget.step'; did you mean 'budget.steps'"),
        ("optimiser.lr = 3.0", "unknown key 'optimiser'; did you mean 'optimizer'"),
        ("lr = 3.0", "unknown key 'lr'; did you mean 'optimizer.lr'"),
        ("model.batch_rows = 3", "unknown key 'model.batch_rows'; did you mean 'data.batch_rows'"),
        ("metrics.xyz = 3", "unknown key 'metrics.xyz'; known are host, port"),
        ("budget = 3", "'budget' is a section"),
        ('budget.steps = "many"', "budget.steps: Expected `int | null`, got `str`"),
        ("budget.steps = true", "budget.steps: Expected `int | null`, got `bool`"),
        ("data.batch_rows = 64.0", "data.batch_rows: Expected `int`, got `float`"),
        ('eval.splits = "test"', "eval.splits: Expected `array`, got `str`"),
        ('schedule.name = "cosin"', "schedule.name: Invalid enum value 'cosin'"),
        ("optimizer.betas = [0.9]", "optimizer.betas: Expected `array` of length 2, got 1"),
        ("data.seed = -1", "data.seed is -1"),
        ("data.seed = 4294967296", "data.seed is 4294967296"),
        ("budget.epochs = inf", "budget.epochs is inf"),
        ("eval.rows = 0", "eval.rows is 0"),
        ("metrics.port = 65536", "metrics.port is 65536"),
    ],
)
def test_one_line_names_the_file_and_the_key(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_toml(f'data.path = "DATA"\n{text}' if not text.startswith("data.") else f"{text}\n")
    assert str(refused.value).startswith("run.toml: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such configuration file"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read as TOML"),
        (lambda path: path.write_text("x ="), "cannot be read as TOML"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, make: Any, said: str) -> None:
    path = tmp_path / "run.toml"
    make(path)
    with pytest.raises(ConfigError, match=said) as refused:
        load_config(path)
    assert str(path) in str(refused.value)


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    with pytest.raises(ConfigError, match="Not a directory"):
        load_config(tmp_path / "run.toml" / "run.toml")


def test_differing_keys() -> None:
    one = from_toml('data.path = "DATA"\noptimizer.lr = 0.5\nbudget.steps = 3')
    other = from_toml('data.path = "DATA"\ndata.seed = 2\noptimizer.lr = 0.25')
    assert differing_keys(one, other, sections=("data", "optimizer")) == [
        ("data.seed", 0, 2),
        ("optimizer.lr", 0.5, 0.25),
    ]
    assert differing_keys(one, one, sections=("data", "optimizer", "budget")) == []


def test_refusals_of_parts_become_errors_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="betas"), config_errors():
        raise ValueError("betas are wrong")
    with pytest.raises(InputError, match="no data") as passed, config_errors():
        raise InputError("no data")
    assert not isinstance(passed.value, ConfigError)
    with pytest.raises(TypeError), config_errors():
        raise TypeError("a fault of the program")
