"""Which steps to measure, and the learning rate that the measurements lead to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from stepsize.estimate import Estimate
from stepsize.options import MeasuringOptions
from stepsize.policies.auto import Auto
from stepsize.policies.auto_single import AutoSingle
from stepsize.policies.cadence import Cadence
from stepsize.policies.ema import Ema
from stepsize.policies.horizon import HorizonPlan
from stepsize.policies.median_hold import MedianHold
from stepsize.policies.observe import NoMeasurements, Observe
from stepsize.policies.rates import CoolDown

PolicyName = Literal["none", "observe", "median_hold", "ema", "auto", "auto_single"]
STUDY_START = 2000
COOLDOWN = 0.15


@dataclass(frozen=True, kw_only=True)
class StepSizeConfig:
    """The `[stepsize]` section: how often α* is measured and what it may do to the learning rate."""

    policy: PolicyName = "observe"
    """What estimates lead to. none: nothing is measured. observe: measured and logged, the schedule rules.
    median_hold: at the start of every interval the rate becomes the median of `count` estimates and is held.
    ema: the rate follows the ratio of exponential averages. auto: the rate is found from any first guess
    (optimizer.lr), and kept where the latest quarter of all steps gain together what they should (stepsize/HORIZON.md);
    it holds up to three copies of the weights for that. auto_single: what auto was before, which follows single steps;
    for comparison."""
    interval: int = 100
    """Steps from the start of one series of measurements to the next."""
    count: int = 10
    """Consecutive steps measured at the start of every interval; ema and auto_single measure all of the first one.
    auto knows no intervals: it measures its first 24 steps or more, and from then on ever more seldom."""
    start: int | None = None
    """First step measured; before it the schedule rules. Default: 0, and for median_hold and ema, which begin at the
    schedule's rate, a fortieth of the budget's steps, just past the warm-up (2000 if the budget is not in steps)."""
    warmup: int = 20
    """Steps over which auto and auto_single come up to the rate they found."""
    cooldown: float | None = None
    """Last share of the budget's steps over which auto and auto_single let their rate fall linearly to zero. Default:
    0.15, and 0 if the budget is not in steps. Weights that are not averaged need it; averaged ones lose nothing."""
    delay: int | None = None
    """Steps after its own at which an estimate is handed to the policy, no earlier and no later: with the same delay
    the same estimates act at the same steps on any device. Default: 0 on the CPU, and 4 on CUDA, where an estimate
    comes while training goes on; the trainer waits for one that is late. A continued run keeps the delay it began
    with. On CUDA each of the up to delay + 1 measurements under way holds what the step changed and its probe batch."""
    measuring: MeasuringOptions = field(default_factory=MeasuringOptions)
    """What is measured, and how."""

    def __post_init__(self) -> None:
        known = get_args(PolicyName)
        if self.policy not in known:
            raise ValueError(f"stepsize.policy: {self.policy!r} is not a policy; choose one of {', '.join(known)}")
        if self.interval < 1:
            raise ValueError(f"stepsize.interval: {self.interval} is not positive; give at least 1 step")
        if not 1 <= self.count <= self.interval:
            raise ValueError(
                f"stepsize.count: {self.count} estimates do not fit an interval of {self.interval} steps; "
                f"give stepsize.count from 1 to {self.interval}, or a longer stepsize.interval"
            )
        if self.start is not None and self.start < 0:
            raise ValueError(f"stepsize.start: {self.start} is negative; give the first step to measure, from 0")
        if self.delay is not None and self.delay < 0:
            raise ValueError(f"stepsize.delay: {self.delay} is negative; give 0 steps or more")
        if self.warmup < 0:
            raise ValueError(f"stepsize.warmup: {self.warmup} is negative; give 0 steps or more")
        if self.cooldown is not None and not 0 <= self.cooldown < 1:
            raise ValueError(f"stepsize.cooldown: {self.cooldown} is not a share of the budget; give 0 to below 1")
        self._check_measuring()

    def _check_measuring(self) -> None:
        if "unbiased" not in self.measuring.estimators:
            raise ValueError(
                f"stepsize.measuring.estimators: {list(self.measuring.estimators)} lacks 'unbiased', "
                "which every policy reads; add it"
            )
        curvature = self.measuring.curvature
        if curvature != "ggn" and self.policy not in ("none", "observe"):
            raise ValueError(
                f"stepsize.measuring.curvature: {curvature!r} is for comparison and policy {self.policy!r} would act "
                "on it; use 'ggn', or policy 'observe'"
            )


class Policy(Protocol):
    """Turns estimates into a learning rate. One instance drives one run.

    In every step the loop asks `learning_rate` and `wants`, measures if wanted, has a `Horizon` carry out what
    `horizon` plans, and hands each finished estimate to `observe`, whatever its outcome and however late, in the order
    of their steps. `RateController` does all of it. Where the worker has a delay, the configuration has the same one
    (`StepSizeWorker(..., delay=config.delay)`). By hand that is six lines around anyone's own `optimizer.step()`, here
    with a torch schedule that rules until the policy takes over:

    >>> import torch
    >>> from stepsize import Horizon, StepSizeConfig, StepSizeWorker, make_policy, set_learning_rate
    >>> _ = torch.manual_seed(0)
    >>> weights = torch.tensor([[3.0], [-2.0], [0.5], [1.0]])
    >>> def batch():
    ...     x = torch.randn(256, 4)
    ...     return x, (torch.rand(256, 1) < torch.sigmoid(x @ weights)).float()
    >>> model, loss = torch.nn.Linear(4, 1), torch.nn.BCEWithLogitsLoss()
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    >>> schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20)
    >>> worker = StepSizeWorker(model, optimizer, loss)
    >>> horizon = Horizon(worker)
    >>> config = StepSizeConfig(policy="auto", start=5)
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
    ...     measured |= horizon.carry_out(policy.horizon(step + 1), *b1, step=step + 1)
    ...     said = [policy.observe(estimate) for estimate in worker.poll(step=step)]
    ...     schedule.step()
    >>> bool(loss(model(b1[0]), b1[1]) < 0.4), policy.learning_rate(200, 0.0) > 1e-3
    (True, True)

    Until it takes over a policy hands the schedule's rate back unchanged, so any torch schedule, also one that
    goes on from the rate it finds in the optimizer, runs as if alone; from then on it has no say.
    """

    @property
    def sets_rate(self) -> bool:
        """Whether what it observes can move the rate; if not, the schedule rules all along."""
        ...

    @property
    def cooldown(self) -> CoolDown:
        """The last steps of a budget, in which it hears of no estimate; `NO_COOL_DOWN` where it has none."""
        ...

    def wants(self, step: int) -> bool:
        """Whether to measure α* of this step; asking changes nothing."""
        ...

    def horizon(self, done: int) -> HorizonPlan:
        """What to measure over many steps, asked once for each step, after its rate and before its estimates.

        `done` steps have been made by then. `Horizon.carry_out` does it.
        """
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
    `total_steps` is the budget in steps, None if it is in seconds.

    Raises: ValueError when `initial_rate` is not positive and finite, or a cool-down has no budget to end with.
    """
    if not (initial_rate > 0 and math.isfinite(initial_rate)):
        raise ValueError(f"learning rate: {initial_rate} is not positive and finite; give a rate such as 1e-3")
    start = config.start
    if start is None and config.policy in ("median_hold", "ema"):
        start = STUDY_START if total_steps is None else total_steps // 40
    start = start or 0
    cadence = Cadence(interval=config.interval, count=config.count, start=start)
    match config.policy:
        case "none":
            return NoMeasurements()
        case "observe":
            return Observe(interval=config.interval, count=config.count, start=start)
        case "median_hold":
            return MedianHold(interval=config.interval, count=config.count, start=start, delay=config.delay or 0)
        case "ema":
            return Ema(cadence=cadence)
        case "auto":
            return Auto(
                guess=initial_rate,
                start=start,
                warmup=config.warmup,
                cooldown=_cooldown_steps(config.cooldown, total_steps),
                endless=total_steps is None,
            )
        case "auto_single":
            return AutoSingle(
                guess=initial_rate,
                cadence=cadence,
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
