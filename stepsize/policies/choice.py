"""Which steps to measure, and the learning rate that the measurements lead to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from stepsize.estimate import Estimate
from stepsize.options import Diagnosis, Estimator, Method
from stepsize.policies.follow import Auto, Bounds, Ema, Measuring
from stepsize.policies.median_hold import MedianHold

PolicyName = Literal["none", "observe", "median_hold", "ema", "auto"]
CurvatureName = Literal["ggn", "hessian", "fisher", "empirical_fisher"]
Precision = Literal["float32", "bfloat16"]
STUDY_START = 2000
COOLDOWN = 0.15


@dataclass(frozen=True, kw_only=True)
class StepSizeConfig:
    """The `[stepsize]` section: how often α* is measured and what it may do to the learning rate."""

    policy: PolicyName = "observe"
    """What estimates lead to. none: nothing is measured. observe: measured and logged, the schedule rules.
    median_hold: at the start of every interval the rate becomes the median of `count` estimates and is held.
    ema: the rate follows the ratio of exponential averages. auto: the rate is found from any first guess
    (optimizer.lr) and follows the estimates as far as their error bars go."""
    interval: int = 100
    """Steps from the start of one series of measurements to the next."""
    count: int = 10
    """Consecutive steps measured at the start of every interval; ema and auto measure all of the first interval."""
    start: int | None = None
    """First step measured; before it the schedule rules. Default: 0, and for median_hold and ema, which begin at the
    schedule's rate, a fortieth of the budget's steps, just past the warm-up (2000 where the budget is not in steps)."""
    pooling: int = 100
    """Estimates that the averages of ema reach back over."""
    drift: float = 0.02
    """How far auto takes the best rate to drift in one step, relative to it; more drift, fewer estimates pooled."""
    clip: float = 1.25
    """Largest factor by which one estimate may move the rate of ema and auto, up or down."""
    warmup: int = 20
    """Steps over which auto comes up to the rate it found."""
    cooldown: float | None = None
    """Last share of the budget's steps over which auto lets its rate fall linearly to zero. Default: 0.15, and 0 where
    the budget is not in steps. Weights that are not averaged need it; averaged ones lose nothing by it."""
    min_rate: float = 1e-8
    """Lowest rate that ema and auto may set."""
    max_rate: float = 1.0
    """Highest rate that ema and auto may set."""
    estimators: tuple[Estimator, ...] = ("unbiased",)
    """Which α* to compute. unbiased (slope and curvature from the probe batch) is what policies use and is
    always among them; biased and hybrid stand beside it in alpha.jsonl for comparison."""
    method: Method = "jvp"
    """jvp: the exact derivative of the logits along the step. secant: their difference before and after it, about
    half the cost, with an error that grows with the step and does not average out; the unbiased estimate only."""
    precision: Precision = "float32"
    """bfloat16: the measuring pass runs under autocast, at about half the cost where the processor multiplies
    bfloat16 (AVX-512 BF16, AMX, GPUs) and at more where it does not; training stays as it is. The rounding moves
    an estimate by a small part of its standard error (tests/bench/RESULTS.md)."""
    curvature: CurvatureName = "ggn"
    """Matrix of the curvature. ggn is what policies use; the others, by curvlinops at many times the cost, are for
    comparison under policy observe."""
    diagnostics: Diagnosis = "none"
    """full: alpha.jsonl also has losses, norms and cosines of gradients and step; that costs a backward pass on B1
    and a copy of the whole model."""
    per_group: bool = False
    """Also α* of each of the optimizer's parameter groups along its own part of the step, a pass each."""
    probe_fraction: float = 1.0
    """Share of the probe batch's rows to measure on: the cost falls with it, the variance grows as its inverse."""
    max_age: int | None = None
    """Steps after which an estimate that arrives late no longer counts; by default none is too old."""

    def __post_init__(self) -> None:
        known = PolicyName.__args__
        if self.policy not in known:
            raise ValueError(f"stepsize.policy: {self.policy!r} is not a policy; choose one of {', '.join(known)}")
        if self.interval < 1:
            raise ValueError(f"stepsize.interval: {self.interval} is not positive; give at least 1 step")
        if not 1 <= self.count <= self.interval:
            raise ValueError(
                f"stepsize.count: {self.count} does not fit an interval of {self.interval} steps; "
                "give 1 to stepsize.interval"
            )
        if self.start is not None and self.start < 0:
            raise ValueError(f"stepsize.start: {self.start} is negative; give the first step to measure, from 0")
        self._check_following()
        self._check_measuring()

    def _check_following(self) -> None:
        if self.pooling < 2:
            raise ValueError(f"stepsize.pooling: {self.pooling} is no average; give at least 2 estimates")
        if not 0 <= self.drift < math.inf:
            raise ValueError(f"stepsize.drift: {self.drift} is not a change per step; give 0 or more, such as 0.02")
        if not 1 < self.clip < math.inf:
            raise ValueError(f"stepsize.clip: {self.clip} is not a factor above 1; give one such as 1.25")
        if self.warmup < 0:
            raise ValueError(f"stepsize.warmup: {self.warmup} is negative; give 0 steps or more")
        if self.cooldown is not None and not 0 <= self.cooldown < 1:
            raise ValueError(f"stepsize.cooldown: {self.cooldown} is not a share of the budget; give 0 to below 1")
        if not 0 < self.min_rate < self.max_rate < math.inf:
            raise ValueError(
                f"stepsize.min_rate: {self.min_rate} and stepsize.max_rate: {self.max_rate} bound nothing; "
                "give 0 < min_rate < max_rate"
            )

    def _check_measuring(self) -> None:
        for name in self.estimators:
            if name not in get_args(Estimator):
                known = ", ".join(get_args(Estimator))
                raise ValueError(f"stepsize.estimators: {name!r} is not an estimator; known are {known}")
        if "unbiased" not in self.estimators:
            raise ValueError(
                f"stepsize.estimators: {list(self.estimators)} lacks 'unbiased', which every policy reads; add it"
            )
        for key, kind in (
            ("method", Method),
            ("precision", Precision),
            ("curvature", CurvatureName),
            ("diagnostics", Diagnosis),
        ):
            if getattr(self, key) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"stepsize.{key}: {getattr(self, key)!r} is unknown; choose one of {known}")
        if self.curvature != "ggn" and self.policy not in ("none", "observe"):
            raise ValueError(
                f"stepsize.curvature: {self.curvature!r} is for comparison and policy {self.policy!r} would act on it; "
                "use 'ggn', or policy 'observe'"
            )
        more = len(self.estimators) > 1 or self.curvature != "ggn" or self.diagnostics != "none" or self.per_group
        if self.method == "secant" and more:
            raise ValueError(
                "stepsize.method: 'secant' has the unbiased ggn estimate alone; use 'jvp' for other estimators, "
                "curvatures, diagnostics and groups"
            )
        if self.method == "secant" and self.precision != "float32":
            raise ValueError(
                f"stepsize.precision: {self.precision!r} would round away the difference of logits that the secant is; "
                "use 'float32', or stepsize.method 'jvp'"
            )
        if not 0 < self.probe_fraction <= 1:
            raise ValueError(
                f"stepsize.probe_fraction: {self.probe_fraction} is no share of a batch; give one above 0, up to 1"
            )
        if self.max_age is not None and self.max_age < 0:
            raise ValueError(f"stepsize.max_age: {self.max_age} is negative; give 0 steps or more, or leave it out")


class Policy(Protocol):
    """Turns estimates into a learning rate. One instance drives one run.

    In every step the loop asks `learning_rate` and `wants`, measures if wanted, and hands each finished
    estimate to `observe`, whatever its outcome and however late. That is five lines around anyone's own
    `optimizer.step()`, here with a torch schedule that rules until the policy takes over:

    >>> import torch
    >>> from stepsize import StepSizeConfig, StepSizeWorker, make_policy, set_learning_rate
    >>> _ = torch.manual_seed(0)
    >>> weights = torch.tensor([[3.0], [-2.0], [0.5], [1.0]])
    >>> def batch():
    ...     x = torch.randn(256, 4)
    ...     return x, (torch.rand(256, 1) < torch.sigmoid(x @ weights)).float()
    >>> model, loss = torch.nn.Linear(4, 1), torch.nn.BCEWithLogitsLoss()
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    >>> schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20)
    >>> worker = StepSizeWorker(model, optimizer, loss)
    >>> config = StepSizeConfig(policy="auto", interval=10, count=5, start=5)
    >>> policy = make_policy(config, initial_rate=1e-6, total_steps=300)
    >>> b1 = batch()
    >>> for step in range(300):
    ...     b2, b1 = b1, batch()  # the next batch probes this one's step
    ...     optimizer.zero_grad()
    ...     loss(model(b2[0]), b2[1]).backward()
    ...     set_learning_rate(optimizer, policy.learning_rate(step, schedule.get_last_lr()[0]))
    ...     measured = policy.wants(step) and worker.before_step(*b1, step=step)
    ...     optimizer.step()
    ...     worker.after_step()
    ...     said = [policy.observe(estimate) for estimate in worker.poll(step=step)]
    ...     schedule.step()
    >>> bool(loss(model(b1[0]), b1[1]) < 0.4), policy.learning_rate(200, 0.0) > 1e-3
    (True, True)

    Until it takes over a policy hands the schedule's rate back unchanged, so any torch schedule, also one that
    reckons on from the rate it finds in the optimizer, runs as if alone; from then on it is not heeded.
    """

    def wants(self, step: int) -> bool:
        """Whether to measure α* of this step; asking changes nothing."""
        ...

    def observe(self, estimate: Estimate) -> str | None:
        """Take in one estimate; returns a sentence for the log when it decided something."""
        ...

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The rate for `step`, given the schedule's; asking again for the same step gives the same."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything learned so far, as JSON values; restoring it continues exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        ...


def make_policy(config: StepSizeConfig, *, initial_rate: float, total_steps: int | None) -> Policy:
    """The policy that `config` names.

    `initial_rate` is the optimizer's configured rate, the first guess of policies that leave the schedule;
    `total_steps` is the budget in steps, None where it is in seconds.

    Raises: ValueError when `initial_rate` is not positive and finite, or a cool-down has no budget to end with.
    """
    if not (initial_rate > 0 and math.isfinite(initial_rate)):
        raise ValueError(f"learning rate: {initial_rate} is not positive and finite; give a rate such as 1e-3")
    start = config.start
    if start is None and config.policy in ("median_hold", "ema"):
        start = STUDY_START if total_steps is None else total_steps // 40
    start = start or 0
    measuring = Measuring(interval=config.interval, count=config.count, start=start)
    bounds = Bounds(low=config.min_rate, high=config.max_rate)
    match config.policy:
        case "none":
            return NoMeasurements()
        case "observe":
            return Observe(interval=config.interval, count=config.count, start=start)
        case "median_hold":
            return MedianHold(interval=config.interval, count=config.count, start=start)
        case "ema":
            return Ema(measuring=measuring, bounds=bounds, pooling=config.pooling, clip=config.clip)
        case "auto":
            return Auto(
                guess=initial_rate,
                measuring=measuring,
                bounds=bounds,
                drift=config.drift,
                clip=config.clip,
                warmup=config.warmup,
                cooldown=_cooldown_steps(config.cooldown, total_steps),
            )


def _cooldown_steps(share: float | None, total_steps: int | None) -> tuple[int, int] | None:
    if share is None:
        share = 0.0 if total_steps is None else COOLDOWN
    if share == 0:
        return None
    if total_steps is None:
        raise ValueError(
            f"stepsize.cooldown: {share} is a share of a budget that counts no steps; "
            "set budget.steps or budget.epochs, or leave it 0"
        )
    return min(round((1 - share) * total_steps), total_steps - 1), total_steps


class NoMeasurements:
    """Measures nothing; the schedule rules."""

    def wants(self, step: int) -> bool:
        """Never."""
        return False

    def observe(self, estimate: Estimate) -> str | None:
        """Ignores it."""
        return None

    def learning_rate(self, step: int, scheduled: float) -> float:
        """The schedule's."""
        return scheduled

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Observe(NoMeasurements):
    """Measures the first `count` steps of every `interval` from `start` on; the schedule rules.

    The protocol of the study's experiment 1. An outcome without a number is not repeated.
    """

    def __init__(self, *, interval: int, count: int, start: int) -> None:
        self.interval, self.count, self.start = interval, count, start

    def wants(self, step: int) -> bool:
        """Whether `step` is one of the first `count` of its interval."""
        return step >= self.start and (step - self.start) % self.interval < self.count
