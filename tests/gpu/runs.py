"""Short runs of the trainer's own loop on a device that is named, and everything that can be seen of them.

`python -m tests.gpu.runs DATA DEVICE OUT POLICY STEPS` writes such a run's traces, for a comparison between processes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from ops.step_clock import StepClock
from pipeline.device import DevicePair
from pipeline.shards import Manifest
from stepsize import Lane
from stepsize.estimate import Estimate
from tests.tiny_data import write_tiny
from trainer import job
from trainer.budget import BudgetConfig
from trainer.config import config_from
from trainer.divergence import Divergence
from trainer.job import TrainingState, decided, learner, open_training, run_directory, training_state
from trainer.loop import Position, Timetable
from trainer.records import load_latest

STEPS = 60
BATCH_ROWS = 64


def write_data(folder: Path) -> Path:
    """A folder of some thousand rows of five columns, in several shards."""
    return write_tiny(folder, {"train": [[900, 900, 900], [700, 800], [600]], "validation": [[512]]})


def clock_of(device: str, **options: Any) -> StepClock:
    """The clock of a run on `device`."""
    return job.step_clock(torch.device(device), **options)


@contextmanager
def on(device: str) -> Iterator[None]:
    """Within it runs train on `device`, also where there is a GPU."""
    with ExitStack() as stack:
        for module in (job, learner, training_state, decided, run_directory):
            if hasattr(module, "training_device"):
                stack.enter_context(mock.patch.object(module, "training_device", return_value=torch.device(device)))
        yield


@dataclass
class Traces:
    """Rates and losses by step, estimates in the order they were reported, and in the end all that was trained."""

    steps: list[tuple[int, float, float]] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def same_bits(self, other: Traces, *, estimates: bool = True) -> bool:
        """Whether every loss, rate, weight and moment, and the estimates if they are to be, are equal."""
        same = self.steps == other.steps and self.tensors.keys() == other.tensors.keys()
        same = same and (not estimates or self.estimates == other.estimates)
        return same and all(
            torch.equal(_bytes(mine), _bytes(other.tensors[name])) for name, mine in self.tensors.items()
        )

    def as_json(self) -> Any:
        """Steps and estimates as they come back from a file."""
        return json.loads(json.dumps({"steps": self.steps, "estimates": [asdict(one) for one in self.estimates]}))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@dataclass
class _Outside:
    """Host and observer of one stretch of a run."""

    traces: Traces
    state: TrainingState
    run: Path | None
    stop_after: int | None
    after_step: Callable[[int], None]
    saved_estimates: int = 0

    def evaluate(self, position: Position) -> Mapping[str, float]:
        return {}

    def save(self, position: Position, *, final: bool) -> None:
        self.saved_estimates = len(self.traces.estimates)
        if self.run is not None:
            self.state.save(self.run, position, {}, keep=1)

    def agree(self, position: Position, *, scheduled: bool) -> None:
        pass

    def save_due(self, position: Position, *, scheduled: bool) -> bool:
        return scheduled

    def poll_save(self) -> None:
        pass

    def save_asked(self) -> bool:
        return False

    def drain_save(self) -> None:
        pass

    def broken_weights(self) -> int | None:
        return None

    def roll_back(self, position: Position, divergence: Divergence) -> bool:
        return False

    def stopping(self) -> bool:
        return self.stop_after is not None and len(self.traces.steps) >= self.stop_after

    def on_step(self, record: Mapping[str, Any], timing: Any, training_seconds: float) -> None:
        self.traces.steps.append((record["step"], record["learning_rate"], record["loss"]))
        self.after_step(record["step"])

    def on_pause(self, timing: Any) -> None:
        pass

    def on_estimate(self, estimate: Estimate) -> None:
        self.traces.estimates.append(estimate)

    def await_rows(self, position: Any) -> bool:
        return False

    def on_message(self, message: str, *, step: int) -> None:
        pass


def settings(data: Path, /, *, policy: str = "observe", steps: int = STEPS, **sections: Mapping[str, Any]) -> Any:
    """A configuration that measures a third of the steps, five in a row; `sections` add to it or replace."""
    values: dict[str, dict[str, Any]] = {
        "data": {"path": str(data), "batch_rows": BATCH_ROWS},
        "model": {"table_rows": 2048, "embedding_dim": 8, "bottom": [16, 8], "top": [16, 1]},
        "schedule": {"name": "constant"},
        "stepsize": {"policy": policy, "interval": 15, "count": 5, "start": 13, "delay": 4},
        "budget": {"steps": steps},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return config_from(values, where="tests/gpu")


def trained(
    config: Any,
    device: str,
    *,
    run: Path | None = None,
    stop_after: int | None = None,
    traces: Traces | None = None,
    lane: Lane | None = None,
    after_step: Callable[[int], None] = lambda step: None,
    clock: StepClock | None = None,
    pairs: Callable[[TrainingState], Any] | None = None,
) -> Traces:
    """The run to its end, or until so many steps have been reported; `run` is where it is saved, and continued from.

    `after_step` is called once a step's loss has been read; `pairs` gives what the loop is fed with.
    """
    traces, steps = traces or Traces(), config.budget.steps
    with on(device), open_training(config, Manifest.load(config.data.path), lane=lane) as state:
        found = None if run is None else load_latest(run, device=state.learner.device)
        position = Position() if found is None else state.load(found, run=run or Path())
        outside = _Outside(traces, state, run, stop_after, after_step)
        loop = state.loop(
            clock=clock or clock_of(device),
            timetable=Timetable(budget=BudgetConfig(steps=steps), total_steps=steps),
            host=outside,
            observer=outside,
            position=position,
            pairs=None if pairs is None else pairs(state),
        )
        loop.run()
        if stop_after is not None:  # as the records of a run are cut back to its checkpoint
            traces.estimates = traces.estimates[: outside.saved_estimates]
        traces.tensors = everything_of(state)
    return traces


def everything_of(state: TrainingState) -> dict[str, torch.Tensor]:
    """Copies on the host of weights, averages and the optimizer's state."""
    named: dict[str, torch.Tensor] = {
        f"{kind}.{name}": value for kind, values in state.learner.tensors().items() for name, value in values.items()
    }
    for index, entry in state.learner.optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{index}.{key}": value for key, value in entry.items() if isinstance(value, torch.Tensor)}
    return {name: value.detach().cpu().clone().contiguous() for name, value in named.items()}


class PairsOf:
    """The feed's pairs, each shown to `look` as it is handed over."""

    def __init__(self, state: TrainingState, look: Callable[[DevicePair], None]) -> None:
        self._feed, self._look = state.feed, look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def __next__(self) -> DevicePair:
        pair = next(self._feed)
        self._look(pair)
        return pair


def main(data: str, device: str, out: str, policy: str, steps: str) -> None:
    traces = trained(settings(Path(data), policy=policy, steps=int(steps)), device)
    Path(out).mkdir(parents=True)
    save_file(traces.tensors, Path(out, "tensors.safetensors"))
    Path(out, "traces.json").write_text(json.dumps(traces.as_json()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
