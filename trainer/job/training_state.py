"""All that the steps of a run change, and that its checkpoints therefore hold: built, saved, put back, set going."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ops.step_clock import StepClock
from pipeline.device import Feed, open_feed
from pipeline.reads import ReadRetries
from pipeline.shards import Manifest
from stepsize import Lane
from stepsize.policies import Policy, make_policy
from stepsize.worker import Horizon, StepSizeWorker
from trainer.config import Config, ConfigError, config_errors
from trainer.divergence import DivergenceConfig, DivergenceWatch, Recovery, ValidationTrend
from trainer.job.decided import of_data, with_delay
from trainer.job.device import training_stream
from trainer.job.generations import data_identity, refuse_other_rows, seen_by
from trainer.job.learner import Learner, training_device
from trainer.job.lineage.carried_over import carried_over, policy_settings, rate_settings
from trainer.job.ranks import WantedRows, refuse_on_ranks, shares_of
from trainer.learner import (
    ProgressiveValidation,
    TrainedLoss,
    TrainingPrecision,
    build_loss,
    learning_rate,
    scheduled_rate,
    table_moduli,
)
from trainer.loop import Host, Loop, Observer, Pairs, Position, Timetable
from trainer.ranks import ALONE, Ranks
from trainer.records import (
    Checkpoint,
    CheckpointFile,
    Shares,
    checkpoint_files,
    load_latest,
    load_latest_on_ranks,
    random_state,
    restore_random_state,
    write_checkpoint,
)
from trainer.step import TrainStep, first_click_rows


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The learner, the stream it learns from, and the policy with its measurements."""

    learner: Learner
    feed: Feed
    policy: Policy
    worker: StepSizeWorker
    horizon: Horizon
    scheduled_rate: Callable[[int], float]
    """The schedule's learning rate by step."""
    total_steps: int | None
    """Steps until the budget's steps or epochs are used up; None if it counts neither."""
    splits: tuple[str, ...]
    """The splits to evaluate on, in order: those asked for that have rows."""
    manifest: Manifest
    """Of the data folder; if that is followed, as it was at the start."""
    retries: ReadRetries
    """Of its readers."""
    config: Config
    """What all of it was built from."""
    watch: DivergenceWatch = field(default_factory=lambda: DivergenceWatch(DivergenceConfig()))
    trend: ValidationTrend = field(default_factory=ValidationTrend)
    recovery: Recovery = field(default_factory=Recovery)
    ranks: Ranks = field(default_factory=lambda: ALONE)
    """Those that train the run together."""
    beginning: Mapping[str, Any] = field(default_factory=dict)
    """Of a checkpoint's state, what policy, measurements and the rest were before the first step."""
    progressive: ProgressiveValidation | None = None
    """None if the batches are not scored."""

    def seen(self) -> Manifest:
        """The data as far as the run has come, which is what it is evaluated on and what a checkpoint is of."""
        return seen_by(self.feed, self.manifest)

    def loop(
        self,
        *,
        clock: StepClock,
        timetable: Timetable,
        host: Host,
        observer: Observer,
        position: Position | None = None,
        pairs: Pairs | None = None,
    ) -> Loop:
        """The training loop from `position` on, by default from the start, on `pairs`, by default the feed's."""
        learner = self.learner
        return Loop(
            feed=self.feed if pairs is None else pairs,
            train_step=TrainStep(
                model=learner.model,
                optimizer=learner.optimizer,
                worker=self.worker,
                horizon=self.horizon,
                average=learner.average,
                loss=cast(TrainedLoss, self.worker.loss),
                clock=clock,
                precision=learner.precision,
                progressive=self.progressive,
                ranks=self.ranks,
                seed=learner.seed,
            ),
            policy=self.policy,
            scheduled_rate=self.scheduled_rate,
            timetable=timetable,
            host=host,
            observer=observer,
            position=Position() if position is None else position,
            watch=self.watch,
            recovery=self.recovery,
        )

    def content(
        self, position: Position, records: Mapping[str, int]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """What a checkpoint holds, without copies: all that the next step depends on, and how long the records are."""
        state = {
            "position": asdict(position),
            **data_identity(self.seen()),
            "total_steps": self.total_steps,
            "feed": self.feed.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "stepsize": policy_settings(self.config),
            "rate": rate_settings(self.config),
            "progressive": None if self.progressive is None else self.progressive.state_dict(),
            "random": random_state(),
            "records": records,
            **self._small(),
        }
        if self.learner.factories:
            state["factories"] = dict(self.learner.factories)
        snapshots = self.horizon.state_dict()
        return self.learner.tensors() | ({"snapshots": snapshots} if snapshots else {}), state

    def saved_bytes(self) -> int:
        """Bytes of a checkpoint's tensors, with as many snapshots as the policy may come to hold."""
        snapshots = self.horizon.most_bytes if self.config.stepsize.policy == "auto" else 0
        return self.learner.saved_bytes() + snapshots

    def _small(self) -> dict[str, Any]:
        """What decides beside the weights, as JSON values."""
        return _small(self.policy, self.worker, self.watch, self.trend, self.recovery)

    def save(
        self,
        run: Path,
        position: Position,
        records: Mapping[str, int],
        *,
        keep: int,
        best_step: int | None = None,
        before_publishing: Callable[[], None] = lambda: None,
        not_pruned: Callable[[OSError], None] | None = None,
    ) -> Path:
        """Writes a checkpoint of the `content` now; the rest is as `write_checkpoint` has it."""
        tensors, state = self.content(position, records)
        return write_checkpoint(
            run,
            position.step,
            checkpoint_files(tensors, state),
            keep=keep,
            best_step=best_step,
            before_publishing=before_publishing,
            not_pruned=not_pruned,
            shares=self.shares(lambda: checkpoint_files(tensors, state, on_host=False)),
        )

    def newest(self, run: Path, which: Callable[[int], bool] = lambda step: True) -> Checkpoint | None:
        """The newest whole checkpoint at a step that is `which`, as `load` takes it; of several ranks all get the same.

        Raises: as `load_latest`.
        """
        device = self.learner.device
        if self.ranks.alone:
            return load_latest(run, device=device, wanted=which)
        return load_latest_on_ranks(run, group=self.ranks.for_saves(), take=self.wanted, device=device, wanted=which)

    @cached_property
    def wanted(self) -> WantedRows:
        """Which rows of a checkpoint's tensors are this rank's."""
        return WantedRows(self.learner.model, self.learner.optimizer)

    def shares(self, files: Callable[[], Iterable[CheckpointFile]]) -> Shares | None:
        """What of `files` is this rank's part of a checkpoint; None if there is one rank."""
        return None if self.ranks.alone else shares_of(files(), self.ranks, self.wanted)

    def load(self, checkpoint: Checkpoint, *, run: Path, before: Config | None = None) -> Position:
        """Puts everything back to where `save` found it; `run` is named in errors.

        `before` are the settings that the run had, for checkpoints of versions that do not tell whose policy's state
        they hold. A policy of other settings takes of it what `carried_over` says.
        Raises: ConfigError if the run was trained on other rows.
        """
        state = checkpoint.state
        refuse_other_rows(state, self.manifest, run=run)
        self.feed.load_state_dict(state["feed"])
        position = self.go_back(checkpoint, before=before)
        given = rate_settings(self.config)
        if state.get("rate", given) != given:  # a rate given anew is a whole one
            self.recovery.load_state_dict(None)
        return position

    def go_back(self, checkpoint: Checkpoint, *, before: Config | None = None) -> Position:
        """As `load`, of everything but the stream, which goes on where it is."""
        state = checkpoint.state
        self.learner.load(checkpoint)
        then = state.get("stepsize") or policy_settings(before or self.config)
        policy = carried_over(state["policy"], then, policy_settings(self.config))
        self.policy.load_state_dict(self.beginning["policy"] if policy is None else policy)
        self.horizon.load_state_dict({} if policy is None else checkpoint.tensors.get("snapshots", {}))
        self._load_small(state)
        if self.progressive is not None:  # of what the weights had been trained on by then; earlier versions kept none
            self.progressive.load_state_dict(state.get("progressive"))
        restore_random_state(state["random"])
        return Position(**state["position"])

    def begin_again(self) -> Position:
        """Puts everything but the stream to what it was before the first step, by making the weights anew."""
        dense = replace(self.config, optimizer=replace(self.config.optimizer, table="dense"))
        fresh = Learner.build(dense, self.manifest.format, ranks=self.ranks)  # seeds the generators as well
        state = {"optimizer": fresh.optimizer.state_dict()}
        self.learner.load(Checkpoint(path=Path(), step=0, tensors=fresh.tensors(), state=state))
        self.policy.load_state_dict(self.beginning["policy"])
        self.horizon.load_state_dict({})
        self._load_small(self.beginning)
        if self.progressive is not None:
            self.progressive.load_state_dict(None)
        return Position()

    def _load_small(self, state: Mapping[str, Any]) -> None:
        self.worker.load_state_dict(state["worker"])
        self.watch.load_state_dict(state.get("watch"))
        self.trend.load_state_dict(state.get("trend"))
        self.recovery.load_state_dict(state.get("recovery"))


@contextmanager
def open_training(
    config: Config, manifest: Manifest, *, lane: Lane | None = None, ranks: Ranks = ALONE, continues: bool = False
) -> Iterator[TrainingState]:
    """A run of `config` before its first step, of `ranks` this one's part; its feed and worker are closed afterwards.

    Within it, CUDA work of this thread goes to the training stream.

    `manifest` is that of config.data.path; `lane` runs the measurements of α* instead of the device's own. Of one that
    `continues` the model was accepted by the version that began it.

    Raises: ConfigError and InputError for settings that cannot be used, alone or together.
    """
    device = training_device()
    config = with_delay(of_data(config.resolved(), manifest), device)
    splits = _evaluated_splits(config, manifest)
    refuse_on_ranks(config, ranks.ranks)
    with ExitStack() as stack:
        stack.enter_context(training_stream(device))
        with config_errors():
            # first what is quick to refuse: the model can be large
            _refuse_two_lengths(config)
            TrainingPrecision(name=config.model.precision, device=device).refuse_unsupported()
            table_rows = table_moduli(config.model.of_columns(manifest.format.sparse))
            retries = ReadRetries(config.data.retry_seconds)
            feed = open_feed(
                config.data,
                manifest,
                table_rows=table_rows,
                device=device,
                rank=ranks.rank,
                ranks=ranks.ranks,
                retries=retries,
            )
            stack.enter_context(feed)
            total_steps = config.budget.total_steps(feed.steps_per_epoch)
            scheduled_rate(config.schedule, step=0, total_steps=total_steps, peak=1.0)
            purpose = "continue" if continues else "begin"
            learner = Learner.build(config, manifest.format, ranks=ranks, purpose=purpose)
            peak = learning_rate(learner.optimizer)
            policy = make_policy(config.stepsize, initial_rate=peak, total_steps=total_steps)
            worker = StepSizeWorker(
                learner.model,
                learner.optimizer,
                build_loss(config.loss),
                config.stepsize.measuring,
                take_rows=first_click_rows,
                delay=config.stepsize.delay,
                lane=lane,
                forward_context=learner.precision.forward,
                gather=None if ranks.alone else partial(ranks.gather, what="α*"),
            )
        stack.callback(worker.close)
        largest_weight = config.loss.largest_weight * (_mean_weight(manifest) if config.loss.sample_weights else 1.0)
        watch = DivergenceWatch(config.divergence, largest_weight=largest_weight)
        trend, recovery = ValidationTrend(), Recovery()
        yield TrainingState(
            learner=learner,
            feed=feed,
            policy=policy,
            worker=worker,
            horizon=Horizon(worker),
            scheduled_rate=lambda step: scheduled_rate(config.schedule, step=step, total_steps=total_steps, peak=peak),
            total_steps=total_steps,
            splits=splits,
            manifest=manifest,
            progressive=_progressive(config, learner),
            retries=retries,
            config=config,
            watch=watch,
            trend=trend,
            recovery=recovery,
            ranks=ranks,
            beginning=_small(policy, worker, watch, trend, recovery),
        )


def _refuse_two_lengths(config: Config) -> None:
    """Raises ConfigError for a policy that sets the rate of an optimizer that finds the length of its steps."""
    name, policy = config.optimizer.name, config.stepsize.policy
    if config.optimizer.finds_its_length and policy not in ("none", "observe"):
        raise ConfigError(
            f"optimizer.name is {name!r}, which finds the length of its steps by itself, and stepsize.policy = "
            f"{policy!r} would set it as well; choose another optimizer, or policy 'observe' or 'none'"
        )


def _progressive(config: Config, learner: Learner) -> ProgressiveValidation | None:
    """What scores the training batches, if it is asked for, or by default where a log is followed."""
    asked = config.data.follow if config.eval.progressive is None else config.eval.progressive
    if not asked:
        return None
    return ProgressiveValidation(
        window_rows=config.eval.progressive_rows,
        once=config.data.follow,
        device=learner.device,
        shift=config.loss.shift,
        negative_weight=config.loss.trained_negative_weight,
        weighted=bool(config.loss.sample_weights),
    )


def _mean_weight(manifest: Manifest) -> float:
    """Of the data's rows: what a loss is scaled by."""
    return manifest.statistics["columns"][manifest.format.weight]["mean"] or 1.0


def _small(
    policy: Policy, worker: StepSizeWorker, watch: DivergenceWatch, trend: ValidationTrend, recovery: Recovery
) -> dict[str, Any]:
    return {
        "policy": policy.state_dict(),
        "worker": worker.state_dict(),
        "watch": watch.state_dict(),
        "trend": trend.state_dict(),
        "recovery": recovery.state_dict(),
    }


def _evaluated_splits(config: Config, manifest: Manifest) -> tuple[str, ...]:
    """The splits to evaluate on, in order, less those that the data has no rows for."""
    splits = tuple(name for name in config.eval.splits if manifest.splits[name].rows)
    if config.budget.target_loss is not None and "validation" not in splits:
        raise ConfigError(
            f"budget.target_loss is {config.budget.target_loss}, but there is no validation loss to compare; "
            "put 'validation' into eval.splits, and preprocess with rows for it"
        )
    return splits
