"""With a delay the lag of a device decides nothing: the same rates and weights, and every estimate that was wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch

from ops.step_clock import StepClock
from pipeline.shards import Manifest
from stepsize.estimate import Estimate
from stepsize.policies.choice import PolicyName
from tests.lanes import LaggingLane, random_lags
from trainer.budget import BudgetConfig
from trainer.config import Config, config_from
from trainer.divergence import Divergence
from trainer.job import TrainingState, open_training
from trainer.loop import Position, Stop, Timetable
from trainer.records import load_latest

STEPS = 60
LAGS = [
    *(("auto", *case) for case in ((0, 1), (0, "random"), (1, 1), (1, "random"), (4, 1), (4, 4), (4, "random"))),
    *(("median_hold", *case) for case in ((0, 4), (1, 0), (1, 4), (4, "random"))),
    *((policy, *case) for policy in ("observe", "ema", "auto_single") for case in ((1, "random"), (4, 1))),
]
"""Every policy with delays and lags: shorter, as long, longer and now this, now that under those that ask for other
steps by what they are told."""
CUTS = [
    *((policy, cut) for policy in ("auto", "median_hold") for cut in (7, 31, 47)),
    *((policy, 31) for policy in ("none", "observe", "ema", "auto_single")),
]


@dataclass
class Ended:
    """What a run leaves: rates and losses by step, estimates in the order reported, messages, weights."""

    steps: list[tuple[int, float, float]] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    worker: Any = None
    policy: Any = None

    def assert_equals(self, other: Ended) -> None:
        assert self.steps == other.steps
        assert self.estimates == other.estimates
        assert self.messages == other.messages
        assert (self.worker, self.policy) == (other.worker, other.policy)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(self.weights, other.weights, strict=True))


class Ticking:
    """The feed's pairs; the lane's clock goes on by one with each."""

    def __init__(self, state: TrainingState, lane: LaggingLane) -> None:
        self._feed, self._lane = state.feed, lane

    @property
    def last_wait(self) -> Any:
        return self._feed.last_wait

    def __next__(self) -> Any:
        self._lane.tick()
        return next(self._feed)


@dataclass
class Outside:
    """Host and observer of a run that is stopped after `stop_after` steps, and saved where a folder is given."""

    state: TrainingState
    run: Path | None
    stop_after: int | None
    ended: Ended
    saved_estimates: int = 0

    def evaluate(self, position: Position) -> Mapping[str, float]:
        return {}

    def save(self, position: Position, *, final: bool) -> None:
        self.saved_estimates = len(self.ended.estimates)
        if self.run is not None:
            self.state.save(self.run, position, {}, keep=1)
        self.ended.worker, self.ended.policy = self.state.worker.state_dict(), self.state.policy.state_dict()

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
        return self.stop_after is not None and len(self.ended.steps) >= self.stop_after

    def on_step(self, record: Mapping[str, Any], timing: Any, training_seconds: float) -> None:
        self.ended.steps.append((record["step"], record["learning_rate"], record["loss"]))

    def on_pause(self, timing: Any) -> None:
        pass

    def on_estimate(self, estimate: Estimate) -> None:
        self.ended.estimates.append(estimate)

    def await_rows(self, position: Any) -> bool:
        return False

    def on_message(self, message: str, *, step: int) -> None:
        self.ended.messages.append(message)


def config_of(data: Path, policy: str, delay: int, **stepsize: Any) -> Config:
    values = {
        "data": {"path": str(data), "batch_rows": 64},
        "model": {"table_rows": 2048, "embedding_dim": 4, "bottom": [8, 4], "top": [8, 1]},
        "schedule": {"name": "constant"},
        "stepsize": {"policy": policy, "interval": 12, "count": 5, "start": 4, "delay": delay, **stepsize},
        "budget": {"steps": STEPS},
    }
    return config_from(values, where="test")


def trained(
    config: Config,
    lane: LaggingLane,
    *,
    run: Path | None = None,
    stop_after: int | None = None,
    ended: Ended | None = None,
) -> Ended:
    """The run to its end or to `stop_after` steps, going on from `run`'s checkpoint if it has one.

    What was reported after that checkpoint is forgotten, as records are cut back to it.
    """
    ended = ended or Ended()
    manifest = Manifest.load(config.data.path)
    with open_training(config, manifest, lane=lane) as state:
        found = None if run is None else load_latest(run)
        position = Position() if found is None else state.load(found, run=cast(Path, run))
        outside = Outside(state, run, stop_after, ended)
        loop = state.loop(
            clock=StepClock(),
            timetable=Timetable(budget=BudgetConfig(steps=STEPS), total_steps=STEPS),
            host=outside,
            observer=outside,
            position=position,
            pairs=cast(Any, Ticking(state, lane)),
        )
        stop = loop.run()
        assert stop is (Stop.BUDGET if stop_after is None else Stop.INTERRUPTED)
        if stop is Stop.INTERRUPTED:
            ended.estimates = ended.estimates[: outside.saved_estimates]
        ended.weights = [parameter.detach().clone() for parameter in state.learner.model.parameters()]
    return ended


@pytest.fixture(scope="module")
def undisturbed(small_data: Path) -> dict[tuple[str, int], Ended]:
    """What a device without any lag gives, made when asked for."""

    class Made(dict[tuple[str, int], Ended]):
        def __missing__(self, key: tuple[str, int]) -> Ended:
            self[key] = trained(config_of(small_data, *key), LaggingLane(0))
            return self[key]

    return Made()


@pytest.mark.parametrize(("policy", "delay", "lag"), LAGS)
def test_the_same_run_at_a_fixed_delay_whatever_the_lag(
    small_data: Path, undisturbed: dict[tuple[str, int], Ended], policy: str, delay: int, lag: int | str
) -> None:
    assert {name for name, *_ in LAGS} == {*get_args(PolicyName)} - {"none"}
    lane = LaggingLane(lag if isinstance(lag, int) else random_lags(9, seed=7))
    trained(config_of(small_data, policy, delay), lane).assert_equals(undisturbed[policy, delay])
    assert lane.most_in_flight <= delay + 1
    if isinstance(lag, int):
        before_the_end = [tick for tick in lane.waits if tick < STEPS]
        assert bool(before_the_end) == (lag > delay), "waited for only where the lag is longer than the delay"


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_every_wanted_estimate_is_reported_once_at_the_age_of_the_delay(
    small_data: Path, undisturbed: dict[tuple[str, int], Ended], delay: int
) -> None:
    estimates = undisturbed["observe", delay].estimates
    wanted = [step for step in range(4, STEPS) if (step - 4) % 12 < 5]
    assert [estimate.step for estimate in estimates] == wanted
    assert [estimate.age for estimate in estimates] == [min(delay, STEPS - 1 - step) for step in wanted]


@pytest.mark.parametrize(("policy", "cut"), CUTS)
def test_a_run_that_is_stopped_and_continued_is_the_same_run(
    small_data: Path, tmp_path: Path, undisturbed: dict[tuple[str, int], Ended], policy: str, cut: int
) -> None:
    assert {name for name, _ in CUTS} == {*get_args(PolicyName)}
    config = config_of(small_data, policy, 4)
    lane = LaggingLane(random_lags(9, seed=cut))
    first = trained(config, lane, run=tmp_path, stop_after=cut)
    found = load_latest(tmp_path)
    assert found is not None
    waiting = found.state["worker"]["undelivered"]
    assert [one["due"] - one["estimate"]["step"] for one in waiting] == [4] * len(waiting)
    assert bool(waiting) == (policy != "none"), "the cut goes through estimates under way"
    trained(config, LaggingLane(1), run=tmp_path, ended=first).assert_equals(undisturbed[policy, 4])


def test_the_delay_is_what_makes_rates_and_a_longer_one_other_rates(
    undisturbed: dict[tuple[str, int], Ended],
) -> None:
    """The comparison above would notice estimates that come at another step."""
    ends = [undisturbed["auto", delay].steps for delay in (0, 1, 4)]
    assert ends[0] != ends[1] != ends[2]
    assert len({rate for _, rate, _ in undisturbed["median_hold", 4].steps}) >= 4, "median_hold sets its rates"


def test_estimates_with_everything_asked_for_are_stored_whole(small_data: Path, tmp_path: Path) -> None:
    measuring = {"estimators": ["unbiased", "biased", "hybrid"], "per_group": True, "diagnostics": "full"}
    config = config_of(small_data, "observe", 4, measuring=measuring)
    whole = trained(config, LaggingLane(2))
    first = trained(config, LaggingLane(2), run=tmp_path, stop_after=6)
    assert len(first.estimates) == 0
    trained(config, LaggingLane(0), run=tmp_path, ended=first).assert_equals(whole)
    assert {"biased", "groups", "diagnostics"} <= {name for name, value in asdict(whole.estimates[0]).items() if value}
