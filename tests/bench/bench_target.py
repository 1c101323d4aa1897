"""c of target_K = ½ + (c/4)·ln(t/(t − K)), on quadratics that are solved: which one fits, and which one `auto` keeps.

SGD on ½ Σ h x² with gradients h·x + √h·noise, in expectation, step by step, without a draw; a hundred directions, all
of them one from the minimum. Constant rates are tried at every sixteenth of a decade, with a warm-up; judged are the
last weights before the cool-down over the last 15 % ("held"), those after it ("cooled"), and without one the
exponential average of some hundred steps ("averaged"). c is read off α_K, K = 0.28 t, at 85 % of the run. Then `auto`
itself, fed such expectations in place of estimates: the c at which it works, and its loss above that of the best
constant rate; in the last row as geometric means.
stepsize/HORIZON.md says what to make of it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import geometric_mean
from unittest.mock import patch

import torch
from torch import Tensor

from stepsize.estimate import Estimate, solve
from stepsize.policies.auto import Auto
from stepsize.policies.horizon.target import SHORT

COOLDOWN, WARM_UP, SHARE, FINE = 0.15, 0.05, 0.28, 16
TRIED = (2.0, 1.0, 0.5, 0.25)
AVERAGE = 0.99
ERROR = 0.05
"""Of every α, as if it had been estimated."""
COUNT = 100
SPECTRA = {
    "1 to 1e-4, evenly in ln h": torch.logspace(0, -4, COUNT, dtype=torch.float64),
    "1 to 1e-2, evenly in ln h": torch.logspace(0, -2, COUNT, dtype=torch.float64),
    "1/i": 1 / torch.arange(1, COUNT + 1, dtype=torch.float64),
    "1/i²": 1 / torch.arange(1, COUNT + 1, dtype=torch.float64) ** 2,
    "half 1, half 1e-3": torch.tensor([1.0, 1e-3], dtype=torch.float64).repeat_interleave(COUNT // 2),
}


@dataclass(kw_only=True)
class Expected:
    """E x², of the average a as well, for any number of rates at once: (..., 100)."""

    h: Tensor
    noise: float
    square: Tensor
    averaged: Tensor
    crossed: Tensor
    """E a·x."""
    remains: Tensor
    """E x_t / x_0 of each direction."""
    steps: int = 0

    @classmethod
    def begin(cls, h: Tensor, noise: float, rates: int = 1) -> Expected:
        """A distance of one in every direction."""
        ones = torch.ones(rates, COUNT, dtype=torch.float64)
        return cls(h=h, noise=noise, square=ones, averaged=ones, crossed=ones, remains=ones)

    def step(self, rate: Tensor) -> None:
        """SGD at `rate` (..., 1), and the average after it."""
        kept = 1 - rate * self.h
        self.steps += 1
        weight = max(1 - AVERAGE, 1 / self.steps)
        self.square = kept**2 * self.square + rate**2 * self.h * self.noise
        crossed = kept * self.crossed
        old = (1 - weight) ** 2 * self.averaged + 2 * weight * (1 - weight) * crossed
        self.averaged = old + weight**2 * self.square
        self.crossed = (1 - weight) * crossed + weight * self.square
        self.remains = self.remains * kept

    def loss(self, square: Tensor) -> Tensor:
        """½ Σ h E x², inf where it is lost."""
        loss = 0.5 * (self.h * square).sum(-1)
        return torch.where(loss < 1e3, loss, torch.inf)

    def since(self, square: Tensor, remains: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and curvature of the displacement since a moment with these."""
        kept = torch.where(remains == 0, 0, self.remains / remains)
        return (self.h * (kept - 1) * square).sum(-1), (self.h * (self.square - 2 * kept * square + square)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The best of the constant rates: its loss, its rate, and c there."""

    loss: float
    rate: float
    c: float


def constants(h: Tensor, noise: float, steps: int) -> dict[str, Constant]:
    """The best ones held, cooled and averaged."""
    rates = 10 ** (torch.arange(-4 * FINE, FINE // 2, dtype=torch.float64)[:, None] / FINE)
    last, rising = round((1 - COOLDOWN) * steps), max(1, round(WARM_UP * steps))
    begun = last - round(SHARE * last)
    cooled, constant = (Expected.begin(h, noise, len(rates)) for _ in range(2))
    found: dict[str, Tensor] = {}
    c = torch.tensor(math.nan)
    old = cooled.square, cooled.remains
    for step in range(steps):
        if step == begun:
            old = cooled.square, cooled.remains
        if step == last:
            slope, curvature = cooled.since(*old)
            c = (-slope / curvature - 0.5) * 4 / math.log(last / begun)
            found["held"] = cooled.loss(cooled.square)
        risen = rates * min(1.0, (step + 1) / rising)
        cooled.step(risen * min(1.0, (steps - step) / (steps - last)))
        constant.step(risen)
    found |= {"cooled": cooled.loss(cooled.square), "averaged": constant.loss(constant.averaged)}
    places = {name: int(losses.argmin()) for name, losses in found.items()}
    return {
        name: Constant(loss=found[name][at].item(), rate=rates[at].item(), c=c[at].item())
        for name, at in places.items()
    }


def target(done: int, since: int, *, c: float) -> float:
    """`target_of` with another c than its 1."""
    gained = c * math.log(done / since) / 4 if since > 0 else math.inf
    return min(1.0, 0.5 + max(gained, 0.5 * min(1.0, SHORT / (done - since))))


def led(h: Tensor, noise: float, steps: int, *, c: float, cool: bool) -> tuple[float, float]:
    """`auto` with this c: its loss, of the average where it does not cool down, and the c that α_K had at last."""
    with patch("stepsize.policies.auto.target_of", partial(target, c=c)):
        policy = Auto(guess=1e-2, cooldown=(round((1 - COOLDOWN) * steps), steps) if cool else None)
        now, kept, reached = Expected.begin(h, noise), dict[int, tuple[Tensor, Tensor]](), math.nan
        for step in range(steps):
            rate = policy.learning_rate(step, 0.0)
            told = []
            if policy.wants(step):
                slope = -rate * (h**2 * now.square).sum()
                curvature = rate**2 * (h**3 * now.square + h**2 * noise).sum()
                told.append(_estimate(step, slope.item(), curvature.item(), rate, 1))
            now.step(torch.tensor(rate))
            done = step + 1
            plan = policy.horizon(done)
            if plan.since is not None:
                slope, curvature = (part.item() for part in now.since(*kept[plan.since]))
                told.append(_estimate(step, slope, curvature, rate, done - plan.since))
                reached = (-slope / curvature - 0.5) * 4 / math.log(done / plan.since)
            for old in plan.forget:
                del kept[old]
            if plan.keep:
                kept[done] = (now.square, now.remains)
            for one in told:
                policy.observe(one)
    return now.loss(now.square if cool else now.averaged).item(), reached


def _estimate(step: int, slope: float, curvature: float, rate: float, horizon: int) -> Estimate:
    spread = {"slope_variance": (ERROR * curvature) ** 2, "curvature_variance": 0.0, "covariance": 0.0}
    outcome, numbers = solve(slope=slope, curvature=curvature, learning_rate=rate, **spread)
    known = {"rows": 256, "horizon": horizon, "learning_rate": rate, "outcome": outcome}
    return Estimate(step=step, age=0, **vars(numbers), **spread, **known)


def above(ratios: Iterable[float]) -> str:
    """Losses over the best one's, as what they are above it."""
    return ", ".join(f"{100 * (ratio - 1):+.0f}" for ratio in ratios)


def rows(steps: int) -> Iterator[str]:
    """The table, a line at a time."""
    ratios: dict[str, list[list[float]]] = {"cooled": [], "averaged": []}
    tried = ", ".join(f"{c:g}" for c in TRIED)
    heads = [
        "curvatures; noise",
        "best rate held / cooled / averaged",
        "c there",
        f"`auto` at c = {tried}: c at last",
        "cooled, % above the best cooled",
        "averaged, % above the best averaged",
    ]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for title, h in SPECTRA.items():
        for noise in (0.03, 1.0):
            best = constants(h, noise, steps)
            cooled, averaged = ([led(h, noise, steps, c=c, cool=cool) for c in TRIED] for cool in (True, False))
            ratios["cooled"].append([loss / best["cooled"].loss for loss, _ in cooled])
            ratios["averaged"].append([loss / best["averaged"].loss for loss, _ in averaged])
            cells = [
                f"{title}; {noise:g}",
                " / ".join(f"{one.rate:.3g}" for one in best.values()),
                " / ".join(f"{one.c:.2f}" for one in best.values()),
                ", ".join(f"{reached:.2f}" for _, reached in cooled),
                *(above(found[-1]) for found in ratios.values()),
            ]
            yield f"| {' | '.join(cells)} |"
    means = [above(map(geometric_mean, zip(*found, strict=True))) for found in ratios.values()]
    yield f"| geometric mean | | | | {' | '.join(means)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(arguments.steps):
        print(row, flush=True)


if __name__ == "__main__":
    main()
