"""Known delays of loader and model, in simulated time, come out of the three trials as they went in."""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from ops.step_clock import StepClock
from pipeline.device.feed import DevicePair, Feed
from pipeline.device.model_inputs import ModelInputs
from pipeline.reads import ReadRetries
from pipeline.rows.order import RowPosition
from pipeline.shards.manifest import Manifest
from stepsize.losses import BCEWithLogits
from stepsize.policies.choice import PolicyName, StepSizeConfig, make_policy
from stepsize.worker import Horizon, StepSizeWorker
from trainer.config import Config, ConfigError
from trainer.console import Console
from trainer.job.learner import Learner
from trainer.job.training_state import TrainingState
from trainer.learner import ProgressiveValidation, TrainingPrecision
from trainer.process import relayed_signals
from trainer.stall.comparison import StallReport
from trainer.stall.trials import Rows, StallMeasurement, StallSetup, Stopwatch, _terminated_like_interrupted

MILLISECOND = 1_000_000
QUEUE = 4
RATE = 0.1
EPOCH = (8, 8, 8, 3)
"""Rows of the batches of an epoch."""


class FakeTime:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class SlowModel(nn.Module):
    """Takes `delay` ms a forward pass."""

    def __init__(self, time: FakeTime, delay: float, *, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([start]))
        self.seen: list[int] = []
        self._time, self._delay = time, delay

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        self.seen.append(len(dense))
        self._time.now += round(self._delay * MILLISECOND)
        return dense[:, 0] * self.weight


class SlowFeed:
    """A loader of one thread, at most `QUEUE` pairs ahead, that takes `delays` ms a pair, by stage."""

    def __init__(self, time: FakeTime, delays: dict[str, float]) -> None:
        self.last_wait = None
        self.log: list[str] = []
        self._time, self._delays = time, delays
        self._start_anew(made=0)

    def _start_anew(self, made: int) -> None:
        self._made = made
        self._ready = deque[int]()
        self._taken = deque([self._time.now] * QUEUE)
        self._done_at = self._time.now

    def __iter__(self) -> SlowFeed:
        return self

    def __next__(self) -> DevicePair:
        while len(self._ready) < QUEUE:
            start = max(self._done_at, self._taken.popleft())
            self._done_at = start + round(sum(self._delays.values()) * MILLISECOND)
            self._ready.append(self._done_at)
        self._time.now = max(self._time.now, self._ready.popleft())
        self._taken.append(self._time.now)
        rows = EPOCH[self._made % len(EPOCH)]
        self._made += 1
        self.log.append("next")
        ones = torch.ones(rows)
        inputs = ModelInputs(ones[:, None].expand(rows, 2), torch.zeros(3, rows, dtype=torch.int32), ones)
        return DevicePair(
            b1=inputs,
            b2=inputs,
            b1_rows=rows,
            b1_start=0,
            b2_rows=rows,
            b2_start=0,
            fresh=rows == EPOCH[0],
            epoch=0,
            start=0,
            position=RowPosition(),
            skipped=0,
        )

    def stage_totals(self) -> dict[str, tuple[float, int]]:
        rows = sum(EPOCH[i % len(EPOCH)] for i in range(self._made))
        # Every batch takes the same time here, whatever its rows.
        return {stage: (delay / 1000 * self._made, rows) for stage, delay in self._delays.items()}

    def state_dict(self) -> dict[str, int]:
        return {"made": self._made}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.log.append("reset")
        self._start_anew(state["made"])

    def close(self) -> None:
        self.log.append("close")


@dataclass
class Rig:
    """A simulated machine: ms of computing, and of each stage of the loader a pair, `fetch` beyond it when cold."""

    compute: float
    stages: dict[str, float]
    fetch: float = 0.0
    policy: PolicyName = "none"
    broken: bool = False
    progressive: ProgressiveValidation | None = None
    feeds: dict[str, SlowFeed] = field(default_factory=dict)
    models: dict[str, SlowModel] = field(default_factory=dict)
    time: FakeTime = field(default_factory=FakeTime)

    @contextmanager
    def open(self, rows: Rows) -> Iterator[TrainingState]:
        delays = {**self.stages, "source_read": self.fetch} if rows == "cold" else self.stages
        self.feeds[rows] = feed = SlowFeed(self.time, delays)
        self.models[rows] = model = SlowModel(self.time, self.compute, start=math.nan if self.broken else 0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        config = StepSizeConfig(policy=self.policy, interval=4, count=4)
        worker = StepSizeWorker(model, optimizer, BCEWithLogits())
        yield TrainingState(
            learner=Learner(
                model=model,
                optimizer=optimizer,
                average=None,
                table_rows=1,
                tables=1,
                device=torch.device("cpu"),
                precision=TrainingPrecision(),
            ),
            feed=cast(Feed, feed),
            policy=make_policy(config, initial_rate=RATE, total_steps=None),
            worker=worker,
            horizon=Horizon(worker),
            scheduled_rate=lambda step: RATE,
            total_steps=None,
            splits=(),
            manifest=cast(Manifest, None),
            retries=cast(ReadRetries, None),
            config=cast(Config, None),
            progressive=self.progressive,
        )

    def measure(
        self, *, steps: int | None = 40, seconds: float = 1.0, window_rows: float = 27, no_cold_trial: str | None = None
    ) -> StallReport:
        setup = StallSetup(
            steps=steps,
            seconds=seconds,
            warmup_steps=8,
            window_rows=window_rows,
            reader_threads=1,
            no_cold_trial=no_cold_trial,
        )
        return StallMeasurement(
            setup, open_state=self.open, console=Console(quiet=True), nanosecond_time=self.time
        ).run()


def milliseconds(report: StallReport) -> dict[str, float]:
    return {part.name: 1000 * part.seconds_per_step for part in report.components}


def test_known_delays_are_recovered() -> None:
    """Computing 20 ms; preparing 30 ms beside it, so 10 ms are waited for; 25 ms more from a cold cache."""
    report = Rig(compute=20, stages={"decode": 30}, fetch=25).measure()
    assert milliseconds(report) == pytest.approx({"compute": 20, "preparation stall": 10, "fetch stall": 25})
    assert [1000 * trial.waiting_per_step for trial in report.trials] == pytest.approx([0, 10, 35])


def test_a_loader_that_keeps_up_costs_nothing() -> None:
    report = Rig(compute=20, stages={"decode": 12}, fetch=7).measure()
    assert milliseconds(report) == pytest.approx({"compute": 20, "preparation stall": 0, "fetch stall": 0})
    assert report.verdict.startswith("compute-bound: 100%")


def test_the_gain_without_waiting_is_predicted_as_measured() -> None:
    report = Rig(compute=20, stages={"decode": 30}, fetch=25).measure()
    gains = {(gain.trial, gain.change): gain for gain in report.speedups}
    for trial, ratio in (("warm", 1.5), ("cold", 2.75)):
        gain = gains[trial, "no waiting for rows"]
        assert gain.predicted == pytest.approx(ratio)
        assert gain.measured == pytest.approx(ratio)


@pytest.mark.parametrize("compute", [10, 38])
def test_a_wider_bottleneck_gives_what_was_predicted(compute: float) -> None:
    slow = Rig(compute=compute, stages={"decode": 30, "shuffle": 12}).measure(no_cold_trial="not here")
    fast = Rig(compute=compute, stages={"decode": 15, "shuffle": 12}).measure(no_cold_trial="not here")
    (gain,) = [gain for gain in slow.speedups if gain.change == "decode 2× as fast"]
    assert gain.predicted == pytest.approx(slow.trials[1].seconds_per_step / fast.trials[1].seconds_per_step)
    assert gain.predicted > 1.1


def test_computing_repeats_the_other_trials_batches_without_a_loader() -> None:
    rig = Rig(compute=5, stages={"decode": 1})
    report = rig.measure()
    assert rig.models["compute"].seen == rig.models["warm"].seen == rig.models["cold"].seen
    assert set(rig.models["compute"].seen) == set(EPOCH)
    assert len({trial.rows for trial in report.trials}) == 1
    assert rig.feeds["compute"].log == ["next", "close"]


def test_rows_are_read_ahead_of_the_warm_trial_and_again_from_its_start() -> None:
    rig = Rig(compute=5, stages={"decode": 1})
    rig.measure()
    assert rig.feeds["warm"].log == ["next"] * 48 + ["reset"] + ["next"] * 48


def test_alpha_is_measured_in_every_trial_at_the_same_steps() -> None:
    """The policy asks at every step; a stale probe, at every fourth, is left out, also from one cached pair."""
    rig = Rig(compute=5, stages={"decode": 1}, policy="observe")
    report = rig.measure()
    plain = Rig(compute=5, stages={"decode": 1}).measure()
    assert rig.models["compute"].seen == rig.models["warm"].seen
    assert report.trials[0].seconds_per_step == report.trials[1].seconds_per_step
    assert report.trials[0].seconds_per_step > plain.trials[0].seconds_per_step


def test_what_is_scored_of_the_batches_does_not_pile_up() -> None:
    scored = ProgressiveValidation(window_rows=1, once=True, device=torch.device("cpu"))
    Rig(compute=5, stages={"decode": 1}, progressive=scored).measure()
    assert scored.state_dict()["rows"] == 0, "every window was taken"


def test_stages_are_counted_from_the_end_of_the_warmup() -> None:
    """A stage that had no rows since then counts as a whole: better an old figure than none."""
    totals = {"decode": (9.0, 300), "shuffle": (0.5, 300)}
    watch = Stopwatch(
        warmup_steps=1,
        enough=lambda samples: True,
        line=Console(quiet=True).progress("", None, unit=""),
        stage_totals=lambda: totals,
        samples=[],
    )
    clock = StepClock(nanosecond_time=FakeTime())
    watch.on_step({"step": 0, "rows": 100}, clock.finish_step(), 0.0)
    totals = {"decode": (10.0, 500), "shuffle": (0.5, 300), "collate": (0.1, 10)}
    assert watch.stages() == {"decode": (1.0, 200), "shuffle": (0.5, 300), "collate": (0.1, 10)}


@pytest.mark.parametrize(("window_rows", "steps"), [(27, 32), (81, 24), (1000, 34)])
def test_the_time_given_is_rounded_to_whole_windows(window_rows: float, steps: int) -> None:
    """34 steps take a second; four steps train on 27 rows."""
    report = Rig(compute=30, stages={"decode": 1}).measure(steps=None, seconds=1.0, window_rows=window_rows)
    assert [trial.steps for trial in report.trials] == [steps] * 3


def test_without_a_cold_trial_the_report_says_why() -> None:
    rig = Rig(compute=20, stages={"decode": 30})
    report = rig.measure(no_cold_trial="the disk is memory")
    assert [trial.name for trial in report.trials] == ["compute", "warm"]
    assert report.no_cold_trial == "the disk is memory"
    assert "cold" not in rig.feeds


def test_divergence_is_no_measurement() -> None:
    with pytest.raises(ConfigError, match=r"diverges within \d+ steps.*lower optimizer.lr"):
        Rig(compute=1, stages={"decode": 1}, broken=True).measure()


def test_a_program_that_hears_its_signals_is_left_to_it() -> None:
    """Its handler knows that it interrupted the work, and so what an error is that comes of it."""

    def handler() -> object:
        with _terminated_like_interrupted():
            return signal.getsignal(signal.SIGTERM)

    assert handler() is signal.default_int_handler
    with relayed_signals(lambda _: None):
        own = signal.getsignal(signal.SIGTERM)
        assert handler() == own != signal.default_int_handler
