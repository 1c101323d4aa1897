"""A study: one TOML file whose arms and seeds unfold into the configurations of many runs."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import msgspec
import tomli_w

from trainer.config import (
    FIXED_SECTIONS,
    MISSING_PATH,
    Config,
    ConfigError,
    config_errors,
    config_from,
    convert,
    differing_keys,
    read_toml,
    without_none,
)
from trainer.earlier_keys import renewed_choices
from trainer.study.grid import assign, cell_name, combinations, leaves, settings_of, short_names, value_of
from trainer.study.scaling import ClockConfig, ScaleConfig, ScaledSetting, scaled
from trainer.study.targets import PublishedConfig, TargetsConfig

STUDIES_FOLDER = Path(__file__).with_name("studies")
RESOLVED = "study.toml"
"""The study as it is run, overrides included, in its folder."""
SEED_KEY = "data.seed"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One `[[study.arm]]`: what its runs have in common, and what is varied among them."""

    name: str
    """Letters, digits and _ . + -; a folder is named after it."""
    set: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of the configuration, each with a value or a list of values; all combinations of the lists are
    run. A key whose one value is a list takes a list of lists to be varied."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"study.arm.name is {self.name!r}; use letters, digits and _ . + -")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The `[study]` section."""

    arm: tuple[ArmConfig, ...] = ()
    """The arms; the report compares every cell with the best of the first."""
    question: str = ""
    """What the study is to answer; the report begins with it."""
    seeds: tuple[int, ...] = (0,)
    """Every cell is run once with each of them as data.seed."""
    within_steps: tuple[int, ...] = ()
    """Also report the best validation loss within so many steps."""
    within_seconds: tuple[float, ...] = ()
    """Also report steps and best validation loss within so many seconds of training."""
    targets: TargetsConfig | None = None
    """Losses to reach: the report says how soon every run does. By default none."""
    keep_checkpoints: bool = True
    """Whether finished runs keep their checkpoints; without them a run can be reported, not evaluated again."""
    published: Literal["", "thesis-observe", "thesis-apply"] = ""
    """The published study whose figures the report puts beside these, and whose list it ticks off; by default none."""
    clock: ClockConfig | None = None
    """Have budgets in seconds be multiples of what an arm takes on this machine; by default they are seconds."""
    scale: ScaleConfig | None = None
    """What --scale changes; without it the study cannot be scaled."""
    scaled_by: str = ""
    """The scale that these settings are at, as --scale was given; written by the study itself, like the next."""
    scaled: tuple[ScaledSetting, ...] = ()
    """What --scale changed."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arm]
        if not names:
            raise ValueError("study.arm is empty; give at least one [[study.arm]]")
        if len(set(names)) < len(names):
            raise ValueError(f"study.arm.name: {_first_double(names)!r} is there twice; name every arm differently")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"study.seeds is {list(self.seeds)}; give at least one, all different")
        if self.targets is not None:
            self.targets.refuse_arms(names)
        for name in ("within_steps", "within_seconds"):
            if any(not value > 0 for value in getattr(self, name)):
                raise ValueError(f"study.{name} is {list(getattr(self, name))}; give positive numbers")
        for clock in (self.clock, self.scale and self.scale.clock):
            if clock and clock.arm not in names:
                raise ValueError(f"study.clock.arm is {clock.arm!r}; give one of {', '.join(names)}")


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run of a study."""

    arm: str
    cell: str
    """What is varied within the arm, in words; the same for all seeds."""
    values: Mapping[str, Any]
    """The run's value of every key that any arm varies."""
    seed: int
    config: Config

    @property
    def path(self) -> Path:
        """Its run directory within the study's folder."""
        return Path("runs", self.arm, f"{self.cell}-seed{self.seed}" if self.cell else f"seed{self.seed}")

    @property
    def name(self) -> str:
        return str(self.path.relative_to("runs"))


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study ready to run: its settings, the base of all its runs, and the runs in the order they are made."""

    settings: StudyConfig
    base: Config
    varied: Mapping[str, tuple[str, ...]]
    """Keys with more than one value, by arm."""
    runs: tuple[StudyRun, ...]
    """First seed of every cell, then the second, and so on: the whole picture is there early."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that some arm varies, in order of appearance."""
        return tuple(dict.fromkeys(itertools.chain.from_iterable(self.varied.values())))

    def to_toml(self) -> str:
        """The study as TOML, overrides included; reading it gives the same study, less data.path's password."""
        values = asdict(self.base.without_secrets()) | {"study": asdict(self.settings)}
        return tomli_w.dumps(without_none(values))


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """A study file as it was read, before overrides."""

    path: Path
    settings: StudyConfig
    base: Config
    """The sections of a run's configuration; `data.path` is empty if the file leaves it to the command line."""
    given: frozenset[str]
    """Dotted keys of those sections that the file itself gives a value."""

    def scaled(self, scale: Fraction, *, train_rows: int) -> StudyFile:
        """The same at `scale`, for a log with so many training rows, as its [study.scale] says.

        Raises: ConfigError if it says nothing, or values that differ would become one.
        """
        if self.settings.scale is None:
            those = [name for name in shipped_studies() if read_study(name).settings.scale]
            raise ConfigError(
                f"{self.path}: --scale: the study does not say what it scales (as {' and '.join(those)} do in "
                "[study.scale]); leave --scale out"
            )
        settings, base = scaled(self.settings, self.base, given=self.given, scale=scale, train_rows=train_rows)
        return replace(self, settings=settings, base=base)

    def unfold(self, base: Config | None = None) -> Study:
        """The study with `base`, the file's sections after overrides, as the base of every run.

        Raises: ConfigError for a key or value that no run can have, an override of what an arm sets, two runs
        that would be the same, or a missing `data.path`.
        """
        base = base or self.base
        self._refuse_overridden(base)
        varied = {
            arm.name: tuple(key for key, values in settings_of(arm.set) if len(values) > 1) for arm in self.settings.arm
        }
        short = short_names([key for keys in varied.values() for key in keys])
        cells = [
            (arm, values, cell_name({short[key]: values[key] for key in varied[arm.name]}))
            for arm in self.settings.arm
            for values in combinations(settings_of(arm.set))
        ]
        runs = tuple(
            self._run(base, arm, values, cell, seed=seed, keys=list(short))
            for seed in self.settings.seeds
            for arm, values, cell in cells
        )
        paths = [run.name for run in runs]
        if len(set(paths)) < len(paths):
            raise ConfigError(f"{self.path}: two runs would be {_first_double(paths)!r}; vary values that differ")
        return Study(settings=self.settings, base=base, varied=varied, runs=runs)

    def _run(
        self, base: Config, arm: ArmConfig, values: Mapping[str, Any], cell: str, *, seed: int, keys: list[str]
    ) -> StudyRun:
        where = f"{self.path}: arm {arm.name!r}"
        nested = msgspec.to_builtins(base)
        for key, value in {**values, SEED_KEY: seed}.items():
            assign(nested, key, value)
        config = config_from(nested, where=where)
        if not config.data.path:
            raise ConfigError(f"{self.path}: {MISSING_PATH}")
        try:
            shown = {key: value_of(config, key) for key in keys}
            if self.settings.targets is not None:
                self.settings.targets.refuse_unseen(config.eval.splits)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        return StudyRun(arm=arm.name, cell=cell, values=shown, seed=seed, config=config)

    def _refuse_overridden(self, base: Config) -> None:
        sections = tuple(item.name for item in fields(Config))
        overridden = {key for key, _, _ in differing_keys(base, self.base, sections=sections)}
        for arm in self.settings.arm:
            for key, _ in settings_of(arm.set):
                if key in overridden:
                    raise ConfigError(f"{self.path}: {key} is set by arm {arm.name!r}; change it there")


def read_study(path: str | Path) -> StudyFile:
    """The study file at `path`, or the one of that name that comes with the package.

    Raises: ConfigError for a file that is missing or not TOML, an unknown key, or a value of the wrong kind.
    """
    path = _found(Path(path))
    values = read_toml(path)
    section = values.pop("study", None)
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: has no [study] section; add it, with seeds and at least one [[study.arm]]")
    _refuse_unknown(section, StudyConfig, "study", path)
    _refuse_unknown(targets := section.get("targets"), TargetsConfig, "study.targets", path)
    for published in targets.get("published", ()) if isinstance(targets, dict) else ():
        _refuse_unknown(published, PublishedConfig, "study.targets.published", path)
    for arm in section.get("arm", ()):
        _refuse_unknown(arm, ArmConfig, "study.arm", path)
        if isinstance(arm, dict) and isinstance(arm.get("set"), dict):
            with config_errors(f"{path}: arm {arm.get('name', '')!r}"):
                arm["set"] = renewed_choices(dict(leaves(arm["set"])))
    for name, owner in (("clock", ClockConfig), ("scale", ScaleConfig)):
        _refuse_unknown(section.get(name), owner, f"study.{name}", path)
    settings = convert({"study": section}, _Section, where=str(path)).study
    for arm in settings.arm:
        for key, choices in settings_of(arm.set):
            if key == SEED_KEY:
                raise ConfigError(f"{path}: arm {arm.name!r} sets {SEED_KEY}; give seeds as study.seeds")
            if not choices:
                raise ConfigError(f"{path}: arm {arm.name!r} gives {key} no value; give at least one")
    given = frozenset(key for key, _ in leaves(values))
    values.setdefault("metrics", {}).setdefault("port", -1)
    # a run that goes back at half the rate is no run at the rate that its arm says
    values["divergence"] = {"rollbacks": 0, "loss_factor": 0.0, **values.get("divergence", {})}
    return StudyFile(path=path, settings=settings, base=config_from(values, where=str(path)), given=given)


def is_study(folder: Path) -> bool:
    """Whether `folder` is one that `alphastream study` wrote."""
    return (folder / RESOLVED).is_file()


def shipped_studies() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES_FOLDER.glob("*.toml"))


def changed_key(wanted: Config, kept: Config) -> tuple[str, Any, Any] | None:
    """The first key that decides a run's result and in which two configurations differ, with both values."""
    sections = (*FIXED_SECTIONS, "schedule", "stepsize", "budget", "eval")
    found = differing_keys(wanted.without_secrets().resolved(), kept.resolved(), sections=sections)
    # a delay that is left open is the one that the run began with
    return next((one for one in found if one[:2] != ("stepsize.delay", None)), None)


@dataclass(frozen=True)
class _Section:
    """Only there so that messages about values name `study.KEY`."""

    study: StudyConfig


def _found(path: Path) -> Path:
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    names = shipped_studies()
    if path.name not in names:
        raise ConfigError(f"{path}: no such study file; give a TOML file's path, or one of {', '.join(names)}")
    return STUDIES_FOLDER / f"{path.name}.toml"


def _refuse_unknown(values: Any, owner: type, prefix: str, path: Path) -> None:
    known = [item.name for item in fields(owner)]
    for key in values if isinstance(values, dict) else ():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            remedy = f"did you mean {f'{prefix}.{near[0]}'!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key {f'{prefix}.{key}'!r}; {remedy}")


def _first_double(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
