"""A run's configuration: TOML sections mapped onto the dataclasses of their owners."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import tomli_w

from pipeline.addresses import without_secrets
from pipeline.device import DataConfig
from pipeline.errors import InputError
from stepsize.policies import StepSizeConfig
from trainer.budget import BudgetConfig, EvalConfig
from trainer.learner import ModelConfig, OptimizerConfig, ScheduleConfig
from trainer.records import CheckpointConfig

MISSING_PATH = (
    "data.path is missing; give the folder that `alphastream preprocess` wrote, in the file or as --data.path"
)

FIXED_SECTIONS = ("data", "model", "optimizer", "schedule", "stepsize")
"""Sections that decide what a run computes, and that a continued one may not change but for where its rows lie."""


class ConfigError(InputError):
    """A configuration that cannot be used; the message names the key, the value and the remedy (exit code 2)."""


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus reads this run."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only."""
    port: int = 9464
    """TCP port of /metrics, /healthz, /readyz and the live page; 0 takes any free one, -1 serves nothing."""

    def __post_init__(self) -> None:
        if not -1 <= self.port <= 65_535:
            raise ValueError(f"metrics.port is {self.port}; give 0 to 65535, or -1 to serve nothing")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run needs to know, section by section."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stepsize: StepSizeConfig = field(default_factory=StepSizeConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.data.seed < 2**32:
            raise ConfigError(f"data.seed is {self.data.seed}; give a whole number from 0 to 4294967295")

    def resolved(self) -> Config:
        """The same with what `model.preset` decides written out: what a run is made from.

        Raises: ConfigError for an unknown preset, sizes that do not fit one another, or a missing data.path.
        """
        if not self.data.path:
            raise ConfigError(MISSING_PATH)
        with config_errors():
            return replace(self, model=self.model.resolved(), optimizer=self.optimizer.resolved(self.model.preset))

    def without_secrets(self) -> Config:
        """The same without the user and password that data.path may carry: what may be shown and stored."""
        return replace(self, data=replace(self.data, path=without_secrets(self.data.path)))


def load_config(path: str | Path) -> Config:
    """The configuration in the TOML file at `path`, checked; data.path may be left to the command line.

    Raises: ConfigError for a file that is missing or no TOML, an unknown key (naming the nearest
    known one), a value of the wrong type or out of range.
    """
    return config_from(read_toml(Path(path)), where=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML file at `path`.

    Raises: ConfigError where it is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; give the path of a TOML file") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error}); correct it") from None


def config_from(values: Mapping[str, Any], *, where: str) -> Config:
    """The configuration given as nested plain values; `where` names their origin in errors.

    Raises: ConfigError as `load_config` does.
    """
    values = _renewed(values, where=where)
    _refuse_unknown(values, Config, prefix="", where=where)
    values = {**values, "data": {"path": "", **values.get("data", {})}}
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {readable(error)}") from None


def config_to_toml(config: Config) -> str:
    """The configuration as TOML, defaults written out; keys that are None are left out, as TOML has no null.

    So are the user and password of data.path.
    """
    return tomli_w.dumps(without_none(asdict(config.without_secrets())))


def differing_keys(one: Config, other: Config, *, sections: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """Dotted keys of `sections` in which two configurations differ, with both values."""
    return [
        (f"{section}.{item.name}", mine, theirs)
        for section in sections
        for item in fields(getattr(one, section))
        if (mine := getattr(getattr(one, section), item.name))
        != (theirs := getattr(getattr(other, section), item.name))
    ]


MOVED_KEYS = {
    f"stepsize.{name}": f"stepsize.measuring.{name}"
    for name in ("estimators", "method", "precision", "curvature", "diagnostics", "per_group", "probe_fraction")
}
"""Keys that earlier versions wrote, and where they are now."""
FIXED_KEYS = {
    "stepsize.pooling": 100,
    "stepsize.drift": 0.02,
    "stepsize.clip": 1.25,
    "stepsize.min_rate": 1e-8,
    "stepsize.max_rate": 1.0,
    "stepsize.max_age": None,
}
"""Keys that earlier versions had and wrote out, with the one value that each has now."""


def _renewed(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """`values` with the keys of earlier versions under their present names.

    Raises: ConfigError for a key that is there under both names, or whose value is fixed at another one now.
    """
    renewed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key, fixed in FIXED_KEYS.items():
        section, name = key.split(".")
        table = renewed.get(section)
        if isinstance(table, dict) and name in table and (given := table.pop(name)) != fixed:
            raise ConfigError(f"{where}: {key} = {given!r}, but it can no longer be set, and is {fixed}; leave it out")
    for key, now in MOVED_KEYS.items():
        section, name = key.split(".")
        table = renewed.get(section)
        place = now.split(".")[1]
        if isinstance(table, dict) and name in table and isinstance(moved := table.get(place, {}), Mapping):
            if name in moved:
                raise ConfigError(f"{where}: {key} and {now} are the same setting; leave out {key}")
            table[place] = {**moved, name: table.pop(name)}
    return renewed


def _refuse_unknown(values: Mapping[str, Any], owner: type, *, prefix: str, where: str) -> None:
    known = get_type_hints(owner)
    for key, value in values.items():
        if key not in known:
            elsewhere = [name for name in _dotted_names(Config) if name.endswith(f".{key}")]
            close = [f"{prefix}{name}" for name in difflib.get_close_matches(key, known, n=1)]
            near = next(iter(elsewhere + close), None)
            remedy = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {prefix + key!r}; {remedy}")
        if is_dataclass(known[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {key!r} is a section; write [{key}] and its keys below")
            _refuse_unknown(value, known[key], prefix=f"{key}.", where=where)


def _dotted_names(owner: type) -> list[str]:
    return [f"{name}.{item.name}" for name, section in get_type_hints(owner).items() for item in fields(section)]


def readable(error: msgspec.ValidationError) -> str:
    """msgspec's "Expected `int` - at `$.data.batch_rows`" with the key first, where the message has it not itself."""
    text, _, place = str(error).partition(" - at `$.")
    key = place.rstrip("`")
    return text if not key or text.startswith(f"{key}.") else f"{key}: {text}"


def without_none(values: Any) -> Any:
    """Nested tables without the keys that are None, as TOML has no null."""
    if isinstance(values, dict):
        return {key: without_none(value) for key, value in values.items() if value is not None}
    return values


@contextmanager
def config_errors() -> Iterator[None]:
    """Turns the ValueError of a part that refuses its settings into a ConfigError."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
