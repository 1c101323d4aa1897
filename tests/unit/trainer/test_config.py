"""The configuration: TOML there and back, and one line that names the key for whatever is wrong with it."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from stepsize.options import MeasuringOptions
from stepsize.policies.auto_single import AutoSingle
from stepsize.policies.ema import Ema
from stepsize.policies.rates import Bounds
from trainer.config import (
    Config,
    ConfigError,
    config_errors,
    config_from,
    config_to_toml,
    differing_keys,
    load_config,
    setting_types,
    without_none,
)
from trainer.earlier_keys import CONSTANTS, MOVED
from trainer.job.learner import EVALUATION_BATCH_ROWS
from trainer.study.grid import assign

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


def test_every_section_has_defaults_but_the_path() -> None:
    config = from_toml('data.path = "DATA"')
    assert [section.name for section in fields(config)] == [
        *("data", "model", "loss", "optimizer", "schedule", "stepsize", "budget", "eval"),
        *("checkpoint", "records", "divergence", "metrics", "watchdog", "ranks"),
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
        ('budget.steps = "many"', "budget.steps is 'many'; give a whole number"),
        ("budget.steps = true", "budget.steps is True; give a whole number"),
        ("data.batch_rows = 64.0", "data.batch_rows is 64.0; give a whole number"),
        ('eval.splits = "test"', "eval.splits is 'test'; give a list of texts in quotes"),
        ('schedule.name = "cosin"', "schedule.name is 'cosin'; give one of 'warmup_cosine'"),
        ("optimizer.betas = [0.9]", "optimizer.betas is [0.9]; give a list of 2 numbers"),
        ("stepsize.measuring.methd = 'jvp'", "did you mean 'stepsize.measuring.method'?"),
        ("stepsize.measuring = 3", "'stepsize.measuring' is a section; write [stepsize.measuring]"),
        ("stepsize.measuring.probe_fraction = 'half'", "stepsize.measuring.probe_fraction is 'half'; give a number"),
        ("optimizer.learning_rate = 0.1", "unknown key 'optimizer.learning_rate'; did you mean 'optimizer.lr'?"),
        ("data.batch_size = 8", "did you mean 'data.batch_rows'?"),
        ("optimizer.betas = [0.9, 'x']", "optimizer.betas is [0.9, 'x']; give a list of 2 numbers"),
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


def test_moved_keys_are_taken_for_what_they_are_now() -> None:
    old = 'data.path = "DATA"\n[stepsize]\nmethod = "secant"\nprobe_fraction = 0.5\ncount = 3\n'
    now = 'data.path = "DATA"\nstepsize.count = 3\n[stepsize.measuring]\nmethod = "secant"\nprobe_fraction = 0.5\n'
    assert from_toml(old) == from_toml(now)
    assert set(MOVED.values()) == {key for key in setting_types(Config) if key.startswith("stepsize.measuring.")}
    both = old + '[stepsize.measuring]\nmethod = "jvp"\n'
    with pytest.raises(ConfigError, match=r"run\.toml: 'stepsize\.method' is now 'stepsize\.measuring\.method'"):
        from_toml(both)


EARLIER = """
[data]
path = "DATA"
[stepsize]
policy = "auto"
interval = 100
count = 10
pooling = 100
drift = 0.02
clip = 1.25
warmup = 20
min_rate = 1e-8
max_rate = 1.0
estimators = ["unbiased"]
method = "jvp"
precision = "float32"
curvature = "ggn"
diagnostics = "none"
per_group = false
probe_fraction = 1.0
[eval]
batch_rows = 8192
"""


def test_a_run_of_an_earlier_version_has_its_settings_of_now() -> None:
    assert from_toml(EARLIER) == from_toml('data.path = "DATA"\nstepsize.policy = "auto"')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepsize.drift = 0.1", "stepsize.drift = 0.1 can no longer be set, it is always 0.02; leave it out"),
        ("stepsize.max_age = 7", "stepsize.max_age = 7 can no longer be set, it is always off; leave it out"),
        ("eval.batch_rows = 16", "eval.batch_rows = 16 can no longer be set, it is always 8192; leave it out"),
        ("stepsize.max_rate = true", "stepsize.max_rate = True can no longer be set"),
        ("stepsize = { method = 'jvp', measuring = 'x' }", "'stepsize.measuring' is a section"),
    ],
)
def test_what_became_a_constant_takes_no_other_value(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_toml(text)
    assert str(refused.value).startswith(f"run.toml: {said}")


def test_constants_are_those_of_their_owners() -> None:
    bounds, auto, ema = Bounds(), signature(AutoSingle).parameters, signature(Ema).parameters
    assert {
        "stepsize.drift": auto["drift"].default,
        "stepsize.clip": auto["clip"].default,
        "stepsize.pooling": ema["pooling"].default,
        "stepsize.min_rate": bounds.low,
        "stepsize.max_rate": bounds.high,
        "stepsize.max_age": None,
        "eval.batch_rows": EVALUATION_BATCH_ROWS,
    } == CONSTANTS


def test_differing_keys_of_nested_tables_are_named_in_full() -> None:
    one = from_toml('data.path = "DATA"')
    other = from_toml('data.path = "DATA"\nstepsize.measuring.method = "secant"')
    assert differing_keys(one, other, sections=("stepsize",)) == [("stepsize.measuring.method", "jvp", "secant")]


def test_a_log_instead_of_the_configuration_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "day_0"
    with path.open("wb") as log:
        log.truncate(1 << 21)
    with pytest.raises(ConfigError, match=r"day_0: has more than a megabyte.*check the path$"):
        load_config(path)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b"budget.steps = 3\n")
    assert load_config(path).budget.steps == 3


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("[stepsize]\npolicy = auto\n", 'texts stand in quotes: policy = "auto"'),
        ("data.path = /data/criteo # ours\n", 'texts stand in quotes: data.path = "/data/criteo"'),
        ("budget.steps = 1 2\n", "correct 'budget.steps = 1 2'"),
        ("x =", "correct 'x ='"),
    ],
)
def test_a_line_that_is_no_toml_is_shown_with_its_remedy(tmp_path: Path, text: str, remedy: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert str(refused.value).endswith(f"; {remedy}")


VALUES = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.just(10**400)
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*setting_types(Config), *MOVED, *CONSTANTS, "data", "stepsize", "stepsize.measuring", "x.y"])


def settled(path: Path) -> Config | str:
    """What a file's settings come to, or the line that refuses them."""
    try:
        return load_config(path).resolved()
    except ConfigError as error:
        return str(error)


def is_one_line(text: str) -> bool:
    return len(text.splitlines()) == 1


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_configuration_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    config = settled(path)
    assert isinstance(config, Config) or is_one_line(config)


@given(settings=st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_values_are_a_configuration_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> None:
    nested: dict[str, Any] = {"data": {"path": "DATA"}}
    for key, value in settings.items():
        assign(nested, key, value)
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(tomli_w.dumps(without_none(nested)), encoding="utf-8")
    config = settled(path)
    assert is_one_line(config) if isinstance(config, str) else from_toml(config_to_toml(config)) == config


@pytest.mark.parametrize("content", ["a = " + "[" * 5000, "a = " + "9" * 5000, "optimizer.lr = " + "9" * 400])
def test_files_that_strain_the_parser_are_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.toml").write_text(f'data.path = "DATA"\n{content}\n')
    refused = settled(tmp_path / "run.toml")
    assert isinstance(refused, str)
    assert is_one_line(refused)


def test_a_resolved_path_leads_there_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_toml('data.path = "DATA"').resolved().data.path == str(tmp_path / "DATA")
    assert from_toml('data.path = "s3://bucket/DATA"').resolved().data.path == "s3://bucket/DATA"


def test_a_path_that_no_toml_can_hold_is_refused() -> None:
    config = config_from({"data": {"path": "DATA-\udcff"}}, where="run.toml")
    with pytest.raises(ConfigError, match=r"^data\.path is not UTF-8"):
        config.resolved()
