"""A study's settings made smaller by one factor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import msgspec

from trainer.config import Config, ConfigError, config_from
from trainer.study.grid import assign, leaves, settings_of, value_text
from trainer.study.scaling.clock import ClockConfig

if TYPE_CHECKING:
    from trainer.study.definition import ArmConfig, StudyConfig

BATCH, INTERVAL, COUNT, STEPS = "data.batch_rows", "stepsize.interval", "stepsize.count", "study.within_steps"


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """The `[study.scale]` section: what `--scale S`, at most 1, changes of the settings that the file gives."""

    multiplied: tuple[str, ...]
    """Keys that become S times as much: whole numbers are rounded, to at least 1. So do study.within_steps."""
    divided: tuple[str, ...] = ()
    """Keys that become 1/S times as much."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys that take a value of their own at every scale but 1."""
    train_rows: int | None = None
    """Rows that the study trains on unscaled. data.batch_rows, if it is multiplied, becomes no more than lets a run
    pass over the same share of the training rows that there are."""
    clock: ClockConfig | None = None
    """The clock of the scaled study: see study.clock."""


@dataclass(frozen=True, kw_only=True)
class ScaledSetting:
    """One setting that was scaled: what it was and what it has become, as text."""

    key: str
    arm: str
    """The arm that sets it; empty for what all runs share."""
    was: str
    now: str
    why: str


def scale_of(text: str) -> Fraction:
    """`1/100` or `0.01` as a number.

    Raises: ConfigError unless it is above 0 and at most 1.
    """
    try:
        scale = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"--scale is {text!r}; give a fraction such as 1/100") from None
    if not 0 < scale <= 1:
        raise ConfigError(f"--scale is {text!r}; give more than 0 and at most 1")
    return scale


def scaled(
    settings: StudyConfig, base: Config, *, given: Iterable[str], scale: Fraction, train_rows: int
) -> tuple[StudyConfig, Config]:
    """The study's settings and its base at `scale`; `given` are the base's keys that the file sets.

    stepsize.count stays if every interval that it meets has room for it. If not, all counts of an arm are multiplied
    by one factor, so that the largest of them is the smallest interval.
    Raises: ConfigError if values that differ become one, or nothing says what is to be scaled.
    """
    rule = settings.scale
    if rule is None:
        raise ConfigError("--scale: the study does not say what it scales, which is its section [study.scale]")
    if scale == 1:
        return settings, base
    scaling = _Scaling(rule, scale, train_rows, given_base=set(given), base=base)
    base = scaling.shared()
    arms = tuple(replace(arm, set=scaling.arm(arm)) for arm in settings.arm)
    within = scaling.changed(STEPS, list(settings.within_steps), "", lambda steps: _whole(steps * scale), f"× {scale}")
    return (
        replace(
            settings,
            arm=arms,
            within_steps=tuple(within),
            scale=None,
            clock=rule.clock,
            scaled_by=str(scale),
            scaled=tuple(scaling.said),
        ),
        base,
    )


class _Scaling:
    """One scaling under way, and what there is to say of it."""

    def __init__(self, rule: ScaleConfig, scale: Fraction, rows: int, *, given_base: set[str], base: Config) -> None:
        self.rule, self.scale, self.rows = rule, scale, rows
        self.nested = msgspec.to_builtins(base)
        flat = dict(leaves(self.nested))
        self.given = {key: [flat[key]] for key in given_base if flat.get(key) is not None}
        self.said: list[ScaledSetting] = []

    def shared(self) -> Config:
        """What all runs share, scaled."""
        for key, value in self.rule.set.items():
            was = dict(leaves(self.nested)).get(key)
            assign(self.nested, key, value)
            self.said.append(ScaledSetting(key=key, arm="", was=value_text(was), now=value_text(value), why="smaller"))
        for key, [value] in self._settings(self.given, {}, "").items():
            assign(self.nested, key, value)
        return config_from(self.nested, where="--scale")

    def arm(self, arm: ArmConfig) -> dict[str, Any]:
        """What an arm sets, scaled."""
        values = dict(settings_of(arm.set))
        changed = self._settings(values, self.given, arm.name)
        return {key: choices[0] if len(choices) == 1 else choices for key, choices in {**values, **changed}.items()}

    def _settings(self, values: Mapping[str, list[Any]], shared: Mapping[str, list[Any]], arm: str) -> dict[str, Any]:
        found: dict[str, list[Any]] = {}
        for key in self.rule.multiplied:
            if key in values:
                change, why = self._batch() if key == BATCH else (self._multiplied, f"× {self.scale}")
                found[key] = self.changed(key, values[key], arm, change, why)
        for key in self.rule.divided:
            if key in values:
                change = lambda value: float(value / self.scale)  # noqa: E731
                found[key] = self.changed(key, values[key], arm, change, f"× {1 / self.scale}")
        intervals = found.get(INTERVAL) or [self._multiplied(each) for each in shared.get(INTERVAL, ())]
        if COUNT in values and intervals and max(values[COUNT]) > min(intervals):
            factor = Fraction(min(intervals), max(values[COUNT]))
            why = "as many as the smallest interval has steps"
            found[COUNT] = self.changed(COUNT, values[COUNT], arm, lambda count: _whole(count * factor), why)
        return found

    def _multiplied(self, value: float) -> float:
        return _whole(value * self.scale) if isinstance(value, int) else float(value * self.scale)

    def _batch(self) -> tuple[Callable[[int], int], str]:
        """Batches scaled like the steps, or smaller ones, so that the rows are passed as often as unscaled."""
        if self.rule.train_rows is None:
            return lambda rows: _whole(rows * self.scale), f"× {self.scale}"
        passed = Fraction(self.rows, self.rule.train_rows) / self.scale
        if passed >= self.scale:
            return lambda rows: _whole(rows * self.scale), f"× {self.scale}"
        why = f"the same share of {self.rows:,} rows is read"
        return lambda rows: _whole(rows * passed), why

    def changed(self, key: str, values: list[Any], arm: str, change: Callable[[Any], Any], why: str) -> list[Any]:
        """`values`, each changed; what became what is noted."""
        now = [change(value) for value in values]
        was_text, now_text = (", ".join(map(_shown, each)) for each in (values, now))
        if len(set(now)) < len(set(values)):
            raise ConfigError(f"--scale {self.scale}: {key} = {was_text} would become {now_text}; give a larger scale")
        if now != values:
            self.said.append(ScaledSetting(key=key, arm=arm, was=was_text, now=now_text, why=why))
        return now


def _whole(value: Fraction | float) -> int:
    return max(1, round(value))


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else value_text(value)
