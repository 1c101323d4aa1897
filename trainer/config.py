"""A run's configuration: TOML sections mapped onto the dataclasses of their owners."""

from __future__ import annotations

import difflib
import math
import operator
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec
import tomli_w

from pipeline.addresses import is_remote, read_settings, without_secrets
from pipeline.device import DataConfig
from pipeline.errors import InputError
from stepsize.policies import StepSizeConfig
from trainer.budget import BudgetConfig, EvalConfig
from trainer.divergence import DivergenceConfig
from trainer.earlier_keys import renewed
from trainer.learner import LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig, beside
from trainer.process import WatchdogConfig
from trainer.ranks import RanksConfig
from trainer.records import CheckpointConfig, RecordsConfig

MISSING_PATH = (
    "data.path is missing; give the folder that `alphastream preprocess` wrote, in the file or as --data.path"
)

FIXED_SECTIONS = ("data", "model", "loss", "optimizer")
"""Sections that say what a run learns from and with. A continued one may not change them, but for where its rows lie
and its rate; all others it may, and says so."""


class ConfigError(InputError):
    """A configuration that cannot be used; the message names the key, the value and the remedy (exit code 2)."""


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus reads this run."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only."""
    port: int = 9464
    """TCP port of /metrics, /healthz, /readyz and the live page; 0 takes any free one, -1 serves nothing."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which browsers and Prometheus may ask. Addresses and localhost always may; other names may where `host`
    is open to the network and none are given here."""
    web_config: str | None = None
    """TLS and passwords: a file in the format of Prometheus's --web.config.file (extra `web`). Without one everybody
    who reaches the port may read it."""
    last_scrape_seconds: float = 15.0
    """A run that is scraped at intervals waits at its end for one more scrape, so long at most, so that its exit code
    is seen; give the scrape interval or more. 0: ends at once."""
    tensorboard_every_steps: int = 0
    """Steps between two points of the curves kept for TensorBoard in RUN/tensorboard (extra `tensorboard`); 0 keeps
    none."""

    def __post_init__(self) -> None:
        if not 0 <= self.last_scrape_seconds < math.inf:
            raise ValueError(f"metrics.last_scrape_seconds is {self.last_scrape_seconds}; give 0 or more seconds")
        if not -1 <= self.port <= 65_535:
            raise ValueError(f"metrics.port is {self.port}; give 0 to 65535, or -1 to serve nothing")
        if self.tensorboard_every_steps < 0:
            raise ValueError(
                f"metrics.tensorboard_every_steps is {self.tensorboard_every_steps}; give 1 or more, or 0 for no curves"
            )

    def resolved(self) -> MetricsConfig:
        """The same with the path of the web config in full."""
        return self if self.web_config is None else replace(self, web_config=str(Path(self.web_config).absolute()))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run needs to know, section by section."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stepsize: StepSizeConfig = field(default_factory=StepSizeConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    records: RecordsConfig = field(default_factory=RecordsConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.data.seed < 2**32:
            raise ConfigError(f"data.seed is {self.data.seed}; give a whole number from 0 to 4294967295")
        measured = self.stepsize.policy != "none"
        if measured and self.stepsize.measuring.method == "secant" and self.model.precision != "float32":
            raise ConfigError(
                f"model.precision is {self.model.precision!r}, which would round away the difference of logits that "
                "stepsize.measuring.method = 'secant' measures; set the method to 'jvp', or the precision to 'float32'"
            )

    def resolved(self) -> Config:
        """The same with its paths in full and what `model.preset` decides written out: what a run is made from.

        Raises: ConfigError for an unknown preset, sizes that do not fit one another, a missing data.path, or a text
        that no file can hold.
        """
        if not self.data.path:
            raise ConfigError(MISSING_PATH)
        path = self.data.path if is_remote(self.data.path) else str(Path(self.data.path).absolute())
        for key in setting_types(Config):
            try:
                str(operator.attrgetter(key)(self)).encode()
            except UnicodeEncodeError:
                raise ConfigError(f"{key} is not UTF-8, as RUN/config.toml must be; give another name to it") from None
        average = self.optimizer.average or ("ema" if self._auto_without_end() else "none")
        with config_errors():
            return replace(
                self,
                data=replace(self.data, path=path),
                metrics=self.metrics.resolved(),
                model=self.model.resolved(),
                optimizer=replace(self.optimizer.resolved(self.model.preset), average=average),
            )

    def _auto_without_end(self) -> bool:
        """Whether the rate is found and followed and never falls to zero, so that the weights have to be averaged."""
        budget = self.budget
        return self.stepsize.policy == "auto" and budget.steps is budget.epochs is budget.seconds is None

    def without_secrets(self) -> Config:
        """The same without the user and password that data.path may carry: what may be shown and stored."""
        return replace(self, data=replace(self.data, path=without_secrets(self.data.path)))


def load_config(path: str | Path) -> Config:
    """The configuration in the TOML file at `path`, checked; data.path may be left to the command line.

    Keys of earlier versions are taken for what they are now.
    Raises: ConfigError for a file that is missing or not TOML, an unknown key (naming the nearest
    known one), a value of the wrong type or out of range.
    """
    config = config_from(read_toml(Path(path)), where=str(path))
    folder = Path(path).absolute().parent
    return replace(config, model=beside(config.model, folder), optimizer=beside(config.optimizer, folder))


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML file at `path`, with or without a byte order mark.

    Raises: ConfigError if it is missing or not TOML.
    """
    try:
        text = read_settings(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; give the path of a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from None
    except InputError as error:
        raise ConfigError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error}); save it as UTF-8") from None
    except ValueError as error:  # a NUL in the name
        raise ConfigError(f"{str(path)!r}: cannot be read ({error}); give the path of a TOML file") from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: cannot be read as TOML (nested too deeply); correct it") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"{path}: cannot be read as TOML ({error}); {_toml_remedy(text, str(error))}") from None


def _toml_remedy(text: str, error: str) -> str:
    """What to do about a line that is not TOML; mostly it is a text without quotes."""
    found = re.search(r"at line (\d+)", error)
    lines = text.split("\n")
    line = (lines[int(found[1]) - 1] if found else text.rstrip().rpartition("\n")[2]).strip()
    if unquoted := re.fullmatch(r"([\w.-]+)\s*=\s*([A-Za-z_/~.][^\s\"'#\[\]{}]*)\s*(#.*)?", line):
        return f'texts stand in quotes: {unquoted[1]} = "{unquoted[2]}"'
    return f"correct {line[:80]!r}" if line else "correct it"


def config_from(values: Mapping[str, Any], *, where: str) -> Config:
    """The configuration given as nested plain values; `where` names their origin in errors.

    Raises: ConfigError as `load_config` does.
    """
    with config_errors(where):
        values = renewed(values)
    _refuse_unknown(values, Config, prefix="", where=where)
    values = {**values, "data": {"path": "", **values.get("data", {})}}
    return convert(values, Config, where=where)


Section = TypeVar("Section")


def convert(values: Mapping[str, Any], owner: type[Section], *, where: str) -> Section:
    """`values` as an instance of the dataclass `owner`.

    Raises: ConfigError that names the key, its value and what it takes.
    """
    try:
        return msgspec.convert(values, owner)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explained(error, values, owner)}") from None
    except OverflowError:
        raise ConfigError(f"{where}: a number is too large; give one that a float can hold") from None


def config_to_toml(config: Config) -> str:
    """The configuration as TOML, defaults written out; keys that are None are left out, as TOML has no null.

    So are the user and password of data.path.
    """
    return tomli_w.dumps(without_none(asdict(config.without_secrets())))


def differing_keys(one: Config, other: Config, *, sections: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """Dotted keys of `sections` in which two configurations differ, with both values."""
    return [
        (key, mine, theirs)
        for key in setting_types(Config)
        if key.split(".")[0] in sections
        and (mine := operator.attrgetter(key)(one)) != (theirs := operator.attrgetter(key)(other))
    ]


def _refuse_unknown(values: Mapping[str, Any], owner: type, *, prefix: str, where: str) -> None:
    known = get_type_hints(owner)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {prefix + key!r}; {nearest(prefix + key)}")
        if is_dataclass(known[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {prefix + key!r} is a section; write [{prefix}{key}] and its keys below")
            _refuse_unknown(value, cast(type, known[key]), prefix=f"{prefix}{key}.", where=where)


ALSO_CALLED = {
    "learning_rate": "optimizer.lr",
    "batch_size": "data.batch_rows",
    "max_steps": "budget.steps",
    "num_epochs": "budget.epochs",
    "optimizer": "optimizer.name",
    "table_size": "model.table_rows",
    "momentum": "optimizer.options.momentum",
    "random_seed": "data.seed",
}
"""What other programs call a key → what it is called here."""


def nearest(key: str) -> str:
    """The remedy for a dotted key that is unknown: the key that was probably meant."""
    names = list(setting_types(Config))
    section, _, name = key.rpartition(".")
    siblings = [known.rpartition(".")[2] for known in names if known.rpartition(".")[0] == section]
    elsewhere = [known for known in names if known.endswith(f".{name}")]
    if name in ALSO_CALLED and ALSO_CALLED[name] != key:
        elsewhere = [ALSO_CALLED[name]]
    sections = difflib.get_close_matches(key, [item.name for item in fields(Config)], n=1) if not section else []
    near = [f"{section}.{each}" for each in difflib.get_close_matches(name, siblings, n=1)] if section else []
    other = difflib.get_close_matches(key, names, n=1)
    if found := next(iter(elsewhere + sections + near), None) or (None if siblings else next(iter(other), None)):
        return f"did you mean {found!r}?"
    return f"known are {', '.join(siblings or [item.name for item in fields(Config)])}"


def setting_types(owner: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key → type, of every setting within the dataclass `owner`, those of nested tables included."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(owner).items():
        found |= (
            setting_types(cast(type, kind), f"{prefix}{name}.") if is_dataclass(kind) else {f"{prefix}{name}": kind}
        )
    return found


def explained(error: msgspec.ValidationError, values: Any, owner: type) -> str:
    """msgspec's "Expected `int` - at `$.data.batch_rows`" as the key, its value and what to give.

    A message that a dataclass raised itself is passed on; it begins with its key.
    """
    text, _, place = str(error).partition(" - at `$.")
    key = re.sub(r"\[.*", "", place.rstrip("`"))
    kind = setting_types(owner).get(key)
    if not key or text.startswith(f"{key}.") or text.startswith(key):
        return text
    if kind is None or not text.startswith(("Expected", "Invalid enum")):
        return f"{key}: {text}"
    value = values
    for name in key.split("."):
        value = value[name]
    return f"{key} is {shortened(value)}; give {what(kind)}"


def shortened(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def what(kind: Any, *, plural: bool = False) -> str:
    """A setting's type in words."""
    if kind is None or kind is type(None):
        return "nothing"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is tuple:
        many = what(inner[0], plural=True)
        return f"a list of {many}" if Ellipsis in inner else f"a list of {len(inner)} {many}"
    if origin in (Union, types.UnionType):
        return " or ".join(what(each) for each in inner if each is not type(None))
    one, several = {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "true or false"),
        str: ("a text in quotes", "texts in quotes"),
    }.get(kind, ("a table", "tables"))
    return several if plural else one


def without_none(values: Any) -> Any:
    """Nested tables, and lists of them, without the keys that are None, as TOML has no null."""
    if isinstance(values, dict):
        return {key: without_none(value) for key, value in values.items() if value is not None}
    return [without_none(value) for value in values] if isinstance(values, list | tuple) else values


@contextmanager
def config_errors(where: str = "") -> Iterator[None]:
    """Turns the ValueError of a part that refuses its settings into a ConfigError, `where` they are from first."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error
