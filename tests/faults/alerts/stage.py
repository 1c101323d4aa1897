"""Where real runs play: each at an address of its own, scraped from the moment it answers until the end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.faults.alerts.fleet import Fleet
from tests.prometheus_server import Prometheus, until

SETTINGS = """
[data]
path = "{data}"
batch_rows = 64
shuffle = "{shuffle}"
prefetch_batches = 8
[model]
table_rows = 64
embedding_dim = 4
bottom = [16, 4]
top = [256, 256, 1]
[optimizer]
name = "sgd"
lr = 0.01
[schedule]
name = "constant"
[stepsize]
policy = "none"
[budget]
steps = 100000000
[eval]
rows = 512
[checkpoint]
every_steps = {checkpoint_steps}
keep = 1
[divergence]
loss_factor = 0.0
[metrics]
port = {port}
"""
Condition = Callable[[], bool]
Play = Iterator[Condition]
"""A run's life: what it waits for, one condition after another."""


@dataclass(kw_only=True)
class Actor:
    """One run, in as many processes as it takes."""

    stage: Stage
    config: Path
    path: Path
    instance: str
    processes: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def begin(self, *options: str) -> None:
        """Starts it, or continues it; scraped once it answers."""
        self.processes.append(self.stage.fleet.start("train", str(self.config), "--run", str(self.path), *options))

    def signal(self, kind: signal.Signals) -> None:
        os.kill(self.processes[-1], kind)

    def end(self) -> int:
        """The exit code of its latest process, which has ended or is about to."""
        self.codes.append(self.stage.fleet.end(self.processes[-1]))
        return self.codes[-1]

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.end()

    def fired(self, *alerts: str) -> Condition:
        return lambda: {(alert, self.instance) for alert in alerts} <= self.stage.firing

    def metric(self, name: str) -> float:
        """A series of the run as last scraped; NaN while there is none."""
        found = self.stage.prometheus.value(f'alphastream_{name}{{instance="{self.instance}"}}')
        return float("nan") if found is None else found

    def answers(self) -> bool:
        try:
            with urlopen(f"http://{self.instance}/healthz", timeout=5):
                return True
        except (URLError, OSError):
            return False


@dataclass(kw_only=True)
class Stage:
    """All runs of the play, and the Prometheus that watches them."""

    folder: Path
    fleet: Fleet
    prometheus: Prometheus
    at_end: ExitStack
    """What is to be done when the curtain falls, however it does."""
    actors: dict[str, Actor] = field(default_factory=dict)
    firing: set[tuple[str, str]] = field(default_factory=set)
    """(alert, instance) of all that have fired so far."""
    waiting: set[str] = field(default_factory=set)
    """Runs whose play is not over."""

    def actor(
        self,
        name: str,
        data: Path,
        *,
        checkpoint_steps: int = 20,
        shuffle: str = "rows",
        folder: Path | None = None,
    ) -> Actor:
        """A run to be, on rows of `data`, in a directory of its name, at an address of its own."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        config = self.folder / f"{name}.toml"
        config.write_text(
            SETTINGS.format(data=data, port=port, checkpoint_steps=checkpoint_steps, shuffle=shuffle),
            encoding="utf-8",
        )
        path = (folder or self.folder) / name
        self.actors[name] = Actor(stage=self, config=config, path=path, instance=f"127.0.0.1:{port}")
        return self.actors[name]

    def play(self, plays: Mapping[str, Play], *, patience: float, missing: Mapping[str, set[tuple[str, str]]]) -> None:
        """Lets every run go on as soon as what it waits for has come, until all are through.

        `missing`: by state, the curves that have had no number yet, of which the error tells if that takes too long.
        """
        conditions = {name: next(play) for name, play in plays.items()}
        scraped: set[str] = set()

        def advance() -> bool | None:
            new = [actor for actor in self.actors.values() if actor.instance not in scraped]
            answering = {actor.instance for actor in new if actor.answers()}
            if answering:
                scraped.update(answering)
                self.prometheus.scrape(*scraped)
            self.firing |= self.fired_so_far()
            for name in [name for name, condition in conditions.items() if condition()]:
                try:
                    conditions[name] = next(plays[name])
                except StopIteration:
                    del conditions[name]
            self.waiting = set(conditions)
            return None if conditions else True

        def late() -> str:
            empty = {state: sorted(left) for state, left in missing.items() if left}
            return f"{sorted(self.waiting)}, curves without a number {empty}, after {sorted(self.firing)}"

        self.waiting = set(conditions)
        until(advance, patience=patience, late=late)

    def fired_so_far(self) -> set[tuple[str, str]]:
        """(alert, instance) of all that have fired, however shortly."""
        found = self.prometheus.query('count_over_time(ALERTS{alertstate="firing"}[1h])')
        return {(labels["alertname"], labels["instance"]) for labels, _ in found}

    def mean_loss(self, actor: Actor) -> float:
        """As the rules average it."""
        found = self.prometheus.value(f'instance:alphastream_loss:avg10m{{instance="{actor.instance}"}}')
        return float("nan") if found is None else found

    def alone(self, *others: str) -> Condition:
        """Whether no run but these still plays."""
        return lambda: self.waiting <= set(others)
