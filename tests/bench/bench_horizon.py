"""Where α_1 and α_K are on target, in decades from the tuned rate: on a quadratic that is solved, and on small tasks.

A constant rate is tried at every half decade (the quadratic's at every sixteenth of one) until a decade lies on either
side of the best. Between a quarter and 85 % of each run α is measured since snapshots K steps old, slopes and
curvatures pooled, and compared with its target, which for K = 1 is 1. Over the last 15 % the rate falls linearly to
zero, as that of `auto` does; a rate can be best for the loss before that ("held") or after ("cooled"). The rate at
which a signal crosses its target is interpolated between the two runs about it. stepsize/HORIZON.md says what to
expect, and why.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from stepsize import Horizon, StepSizeWorker
from stepsize.policies.horizon import target_of
from stepsize.suite.methods import make_optimizer
from stepsize.suite.problems import TASKS, Problem, task
from stepsize.suite.training import mean_loss

HORIZONS: tuple[str, ...] = ("1", "16", "64", ".28 t")
AT_END = ".28 t, last"
"""The last measurement alone; where there is no noise in it."""
QUADRATIC = "quadratic"
TRIED = (QUADRATIC, "digits-mlp", "friedman2-sgd", "movielens-mlp")
Sums = tuple[float, ...]
"""Of all measurements: −slope, curvature, curvature · target, and squares and product of the first two."""
NOTHING: Sums = (0.0,) * 6
POINTS = 32
PROBE_BATCHES = 4
COOLDOWN = 0.15
WARM_UP = 0.05
HALF_DECADES = (-2, -1, 0, 1, 2)
"""From the best rate held, in a table."""
EXTREME = 6
"""Decades from 1 beyond which no rate is tried."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of one rate: losses, and for every horizon its sums."""

    held: float = math.inf
    cooled: float = math.inf
    sums: dict[str, Sums]

    def alpha(self, name: str) -> float:
        """α of all measurements of this horizon."""
        gained, curvature, *_ = self.sums.get(name, (math.nan,) * 6)
        return gained / curvature

    def error(self, name: str) -> float:
        """Its standard error, from how the measurements scatter about it, as if they were independent."""
        _, curvature, _, gg, gc, cc = self.sums.get(name, (math.nan,) * 6)
        alpha = self.alpha(name)
        return math.sqrt(max(0.0, gg - 2 * alpha * gc + alpha**2 * cc)) / curvature

    def target(self, name: str) -> float:
        """What it should be."""
        _, curvature, aimed, *_ = self.sums.get(name, (math.nan,) * 6)
        return aimed / curvature

    def ratio(self, name: str) -> float:
        """Of the two."""
        return self.alpha(name) / self.target(name)


def factor(step: int, steps: int) -> float:
    """Of the rate of `step`: a short warm-up, then 1, then the cool-down."""
    rising, cooling = max(1, round(WARM_UP * steps)), round((1 - COOLDOWN) * steps)
    return min(1.0, (step + 1) / rising) * min(1.0, (steps - step) / (steps - cooling))


def times(steps: int) -> list[int]:
    """Steps after which α is measured."""
    first, last = steps // 4, round((1 - COOLDOWN) * steps)
    return sorted({first + round(number * (last - first) / POINTS) for number in range(1, POINTS + 1)})


def length(name: str, t: int) -> int:
    """K of a horizon that ends after t steps."""
    return max(1, round(0.28 * t)) if name in (".28 t", AT_END) else int(name)


class Quadratic:
    """SGD on ½ Σ h x², gradients h·x + √h·noise of variance σ²: its expectations, step by step, without a draw.

    A hundred directions, h from 1 to 1e-4, all of them one from the minimum.
    """

    def __init__(self, *, steps: int = 2000, noise: float = 1.0) -> None:
        self.steps, self.noise = steps, noise
        self.h = torch.logspace(0, -4, 100, dtype=torch.float64)

    def run(self, rate: float) -> Run:
        """In expectation; inf where it diverges."""
        square, at, held = torch.ones_like(self.h), set(times(self.steps)), math.inf
        squares, moved = [square], [torch.zeros_like(square)]  # E x², and Σ log|1 − ηh| up to each step
        signs = [torch.ones_like(square)]
        sums = dict.fromkeys((*HORIZONS, AT_END), NOTHING)
        for step in range(self.steps):
            if step == round((1 - COOLDOWN) * self.steps):
                held = self._loss(square)
            now = rate * factor(step, self.steps)
            kept = 1 - now * self.h
            square = kept**2 * square + now**2 * self.h * self.noise
            squares.append(square)
            moved.append(moved[-1] + kept.abs().log())
            signs.append(signs[-1] * kept.sign())
            if step + 1 in at:
                for name in (*HORIZONS, AT_END) if step + 1 == max(at) else HORIZONS:
                    k = length(name, step + 1)
                    old, remains = squares[-1 - k], (moved[-1] - moved[-1 - k]).exp() * signs[-1] * signs[-1 - k]
                    gained = (self.h * (old - remains * old)).sum().item()
                    curvature = (self.h * (square - 2 * remains * old + old)).sum().item()
                    sums[name] = added(sums[name], name, step + 1, gained, curvature)
        return Run(held=held, cooled=self._loss(square), sums=sums)

    def _loss(self, square: torch.Tensor) -> float:
        loss = 0.5 * (self.h * square).sum().item()
        return loss if math.isfinite(loss) and loss < 1e3 else math.inf


def added(sums: Sums, name: str, t: int, gained: float, curvature: float) -> Sums:
    """With one measurement more, of −slope and curvature after t steps."""
    target = 1.0 if name == "1" else target_of(t, t - length(name, t))
    terms = (gained, curvature, curvature * target, gained**2, gained * curvature, curvature**2)
    return tuple(total + term for total, term in zip(sums, terms, strict=True))


def train(problem: Problem, rate: float) -> Run:
    """One run of a task, its α measured on the four batches to come."""
    steps, batches = problem.steps, problem.batches()
    optimizer = make_optimizer(problem.task.optimizer, problem.model.parameters(), rate)
    worker = StepSizeWorker(problem.model, optimizer, problem.loss)
    horizon = Horizon(worker, most=steps)
    wanted = [(t - length(name, t), t, name) for t in times(steps) for name in HORIZONS if length(name, t) < t]
    sums = dict.fromkeys(HORIZONS, NOTHING)
    held = math.inf
    for step in range(steps):
        if step == round((1 - COOLDOWN) * steps):
            held = evaluated(problem)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(step, steps)
        if any(since == step for since, _, _ in wanted):
            horizon.keep(step=step)
        batch = batches.at(step)
        optimizer.zero_grad()
        loss = problem.loss(problem.model(*batch.inputs), batch.targets)
        if not math.isfinite(loss.item()):
            return Run(sums={})
        loss.backward()
        optimizer.step()
        done = step + 1
        for since, _, name in [one for one in wanted if one[1] == done]:
            ahead = slice(done * batches.batch, (done + PROBE_BATCHES) * batches.batch)
            probe = batches.train.take(batches.order[ahead])
            horizon.measure(probe.inputs, probe.targets, step=done, since=since)
            for estimate in worker.poll(step=done):
                if estimate.relative is not None and estimate.slope is not None and estimate.curvature is not None:
                    sums[name] = added(sums[name], name, done, -estimate.slope, estimate.curvature)
        for old in [old for old in horizon.steps if not any(since == old and t > done for since, t, _ in wanted)]:
            horizon.forget(old)
    worker.close()
    return Run(held=held, cooled=evaluated(problem), sums=sums)


def train_task(name: str, seed: int, folder: Path | None, rate: float) -> Run:
    """One run of the task of this name."""
    return train(task(name, seed, folder), rate)


def evaluated(problem: Problem) -> float:
    """The loss on validation now, inf where it is not finite; training goes on as before."""
    loss = mean_loss(problem.model, problem.loss, problem.validation)
    problem.model.train()
    return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Runs of one task by rate, in `fine`ths of a decade."""

    fine: int
    runs: dict[int, Run]

    @property
    def held(self) -> int:
        """The best rate before the cool-down."""
        return min(self.runs, key=lambda place: self.runs[place].held)

    @property
    def cooled(self) -> int:
        """The best rate after it."""
        return min(self.runs, key=lambda place: self.runs[place].cooled)

    def crossing(self, name: str) -> float | None:
        """log10 of the rate at which α falls to its target, between the runs about it; None where it does not."""
        ratios = ((place / self.fine, self.runs[place].ratio(name)) for place in sorted(self.runs))
        known = [(place, ratio) for place, ratio in ratios if math.isfinite(ratio)]
        for (low, above), (high, below) in itertools.pairwise(known):
            if above >= 1 > below:
                return low + (high - low) * (above - 1) / (above - below)
        return None

    def decades_off(self, name: str) -> tuple[float, float] | None:
        """The crossing in decades from the best rate held and from the best cooled."""
        place = self.crossing(name)
        return None if place is None else (place - self.held / self.fine, place - self.cooled / self.fine)


def tried(run: Callable[[float], Run], fine: int) -> Tried:
    """Runs from a rate of 0.1 on until a decade is tried on either side of the best one held."""
    found, missing = Tried(fine=fine, runs={}), {-fine}
    while missing:
        found.runs.update({place: run(10 ** (place / fine)) for place in sorted(missing)})
        around = {*range(found.held - fine, found.held + fine + 1), found.cooled - 1, found.cooled + 1}
        missing = {place for place in around - set(found.runs) if abs(place) <= EXTREME * fine}
    return found


def report(title: str, found: Tried, *, errors: bool) -> Iterator[str]:
    """The table of one task."""
    best, cooled = (10 ** (place / found.fine) for place in (found.held, found.cooled))
    yield f"\n{title}: best held at {best:.3g}, cooled at {cooled:.3g}\n"
    yield "| rate / best held | 0.1 | 0.3 | 1 | 3 | 10 | target at 1 | crosses, from held | from cooled |"
    yield "|---|---|---|---|---|---|---|---|---|"
    shown = [found.runs.get(found.held + half * found.fine // 2) for half in HALF_DECADES]
    for name in found.runs[found.held].sums:
        cells = " | ".join(_alpha(one, name, errors=errors) for one in shown)
        apart = found.decades_off(name)
        ends = " | ".join(["–", "–"] if apart is None else [f"{one:+.2f}" for one in apart])
        yield f"| α, K = {name} | {cells} | {number(found.runs[found.held].target(name))} | {ends} |"
    for label, losses in (
        ("loss, held", [None if one is None else one.held for one in shown]),
        ("loss, cooled", [None if one is None else one.cooled for one in shown]),
    ):
        yield f"| {label} | {' | '.join(number(loss, digits=4) for loss in losses)} | | | |"


def _alpha(run: Run | None, name: str, *, errors: bool) -> str:
    if run is None or not errors or not run.sums:
        return number(None if run is None else run.alpha(name))
    return f"{number(run.alpha(name))} ± {number(run.error(name))}"


def number(value: float | None, digits: int = 2) -> str:
    """– for none, "div." for what is not finite."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) else "div."


def summary(found: list[Tried]) -> Iterator[str]:
    """Root mean squares over all tables."""
    yield "\nThe crossings of all tables, in decades\n"
    yield "| | root mean square from held | from cooled | mean from held | from cooled | tables that cross |"
    yield "|---|---|---|---|---|---|"
    for name in HORIZONS:
        known = [apart for one in found if (apart := one.decades_off(name)) is not None]
        sides = list(zip(*known, strict=True)) or [(), ()]
        squares = [f"{math.sqrt(statistics.fmean(x * x for x in side)):.2f}" if side else "–" for side in sides]
        means = [f"{statistics.fmean(side):+.2f}" if side else "–" for side in sides]
        yield f"| K = {name} | {' | '.join([*squares, *means])} | {len(known)} of {len(found)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of movielens.csv.gz; without it that task is left out")
    parser.add_argument(
        "--tasks", default=",".join(TRIED), help=f"names from {QUADRATIC}, {', '.join(TASKS)}; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Tried] = []
    for name in arguments.tasks.split(","):
        if name == QUADRATIC:
            title, run, fine = "Noisy quadratic, SGD, in expectation", Quadratic().run, 16
        elif TASKS[name].group != "classification and regression" and arguments.data is None:
            print(f"\n{name}: left out; give --data the folder of its rows")
            continue
        else:
            title, run, fine = TASKS[name].title, partial(train_task, name, arguments.seed, arguments.data), 2
        found.append(tried(run, fine))
        print("\n".join(report(title, found[-1], errors=name != QUADRATIC)), flush=True)
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
