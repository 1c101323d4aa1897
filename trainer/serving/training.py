"""A run trained from a program or a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.config import Config, MetricsConfig, config_from, load_config, read_toml
from trainer.console import Console
from trainer.job import train
from trainer.loop import Stop
from trainer.serving.opened import OpenedRun, open_run


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """How a run ended."""

    run: Path
    stop: Stop
    """`stop.text` in words; `stop.unfinished`: the same call goes on with it."""

    @property
    def reason(self) -> str:
        return self.stop.text

    def open(self, *, checkpoint: int | None = None, best: bool = False) -> OpenedRun:
        """As `open_run`."""
        return open_run(self.run, checkpoint=checkpoint, best=best)


def train_run(
    config: Config | Mapping[str, Any] | str | Path,
    run: str | Path,
    *,
    quiet: bool = False,
    from_checkpoint: int | None = None,
) -> TrainedRun:
    """Trains in the run directory `run`, or goes on with it, with a line of progress unless `quiet`.

    `config` is a configuration, its sections as nested plain values, or the path of a TOML file. Where it names no
    `metrics.port` any free one is taken. Ctrl-C, or the notebook's stop button, ends it after the step under way, with
    a checkpoint; the same call then goes on. In another thread than the main one nobody hears it.
    Raises: ConfigError, InputError for what cannot be used; OSError if reading or writing failed.
    """
    stop = train(_config(config), run, console=Console(quiet=quiet), from_checkpoint=from_checkpoint)
    return TrainedRun(run=Path(run), stop=stop)


def _config(given: Config | Mapping[str, Any] | str | Path) -> Config:
    """The configuration, with any free port in place of the default one."""
    if isinstance(given, Config):
        named = given.metrics.port != MetricsConfig().port
        config = given
    elif isinstance(given, Mapping):
        named = "port" in given.get("metrics", {})
        config = config_from(given, where="the configuration")
    else:
        named = "port" in read_toml(Path(given)).get("metrics", {})
        config = load_config(given)
    return config if named else replace(config, metrics=replace(config.metrics, port=0))
