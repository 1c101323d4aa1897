"""`auto`: finds the rate from any first guess, and keeps the one at which many steps together gain what they should."""

from __future__ import annotations

import math
from typing import Any

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.few_rows import FewRows, steps_a_block
from stepsize.policies.horizon_plan import HorizonPlan
from stepsize.policies.horizon_series import HorizonSeries
from stepsize.policies.horizon_target import target
from stepsize.policies.rate_filter import RateFilter
from stepsize.policies.rates import Bounds, format_rate, moved
from stepsize.policies.repeats import Repeats
from stepsize.policies.trial_steps import Found, TrialSteps
from stepsize.pooling import COUNTED, RateMoments
import os as _os
X=dict(init=.3,phi=.28,spac=1.18,upd=1/16,floor=.3,dcap=.15,c=1.,k0=4.,single=32,nb=1,aim=0.,cap=8,le=8,up=1.5,down=2.,drift=.02)
for _kv in _os.environ.get('AUTOX','').split(','):
    if _kv: X[_kv.split('=')[0]]=float(_kv.split('=')[1])


class Auto:
    """..."""

    def __init__(self, *, guess: float, start: int = 0, bounds: Bounds = Bounds(high=100.0), warmup: int = 20,
                 cooldown: tuple[int, int] | None = None) -> None:
        self.start, self.bounds, self.warmup, self.cooldown = start, bounds, warmup, cooldown
        self._trials = TrialSteps(guess=guess, bounds=bounds)
        self._filter = RateFilter(drift=X['drift'], largest_factor=X['up'], smallest_factor=1/X['down'])
        self._few_rows, self._repeats = FewRows(), Repeats()
        self._found: int | None = None
        self._warmup = warmup
        self._snapshots: list[int] = []
        self._next = 0
        self._last = 0
        self._open: list[HorizonSeries] = []
        self._rates: dict[int, float] = {}
        self._sum = 0.0
        self._sums: dict[int, float] = {}
        self._asked = 0.0
        self._spread = 0.0
        self._nspread = 0
        self._said: float | None = None
        self.log = []

    def wants(self, step: int) -> bool:
        if step < self.start or self._cooling(step):
            return False
        return self._found is None or step - self._found < self._single

    @property
    def _single(self): return int(X['single'])

    def learning_rate(self, step: int, scheduled: float) -> float:
        if step < self.start:
            return scheduled
        if self._found is None:
            return self._trials.rate * self._left(step)
        ramp = min(1.0, max(1, step - self._found + 1) / self._warmup) if self._warmup else 1.0
        self._asked = self._filter.rate * ramp * self._left(step)
        return self._asked

    def horizon(self, done: int) -> HorizonPlan:
        if self._found is None or self._cooling(done):
            forget = tuple(self._snapshots)
            self._snapshots = []
            return HorizonPlan(forget=forget)
        t = done - self._found
        self._sum += self._asked
        since = None
        if t > self._single and self._snapshots:
            if not self._open or done > self._open[-1].last:
                if t >= self._next:
                    pre = self._single
                    want = t - max(1, min(round(X['phi'] * t), t - pre))
                    at = next((s for s in self._snapshots if s - self._found >= want - 1), self._snapshots[-1])
                    gap = max(1, int(X['upd'] * t))
                    n = int(max(1, min(X['nb'] if not X['aim'] else min(X['cap'], math.ceil(self._spread / X['aim'])), gap)))
                    K = done - at
                    self._open.append(HorizonSeries(since=at, first=done, last=done + n - 1, rate=(self._sum - self._sums[at]) / K))
                    self._next = t + max(gap, n)
                    since = at
            elif done <= self._open[-1].last:
                since = self._open[-1].since
        keep = t >= self._single and (not self._snapshots or t >= X['spac'] * (self._snapshots[-1] - self._found))
        lowest = max((1 - X['phi']) * t * 0.93, self._single)
        forget = []
        while len(self._snapshots) > 1 and self._snapshots[1] - self._found < lowest and (not self._open or self._open[-1].last<=done or self._open[-1].since!=self._snapshots[0]):
            forget.append(self._snapshots.pop(0))
        if keep:
            self._snapshots.append(done)
            self._sums[done] = self._sum
        return HorizonPlan(since=since, keep=keep, forget=tuple(forget))

    def observe(self, estimate: Estimate) -> str | None:
        if estimate.step < self.start or self._cooling(estimate.step):
            return None
        if self._found is None:
            return self._search(estimate)
        if estimate.horizon == 1 and estimate.step - self._found < self._single:
            return self._single_step(estimate)
        while self._open and self._open[0].last < estimate.step + 1:
            self._close(self._open.pop(0))
        if self._open:
            self._open[0].add(estimate)
            if self._open[0].complete:
                self._close(self._open.pop(0))
        return None

    def _search(self, estimate):
        said = self._trials.observe(estimate, self._few_rows)
        if not isinstance(said, Found):
            return said
        after = estimate.step + estimate.age + 1
        rate = self.bounds.clamp(said.rate * X['init'])
        self._filter.start(rate, said.standard_error * X['init'], step=estimate.step)
        self._found = after
        self._warmup = self.warmup * steps_a_block(estimate.rows)
        return f"found {said.rate}"

    def _single_step(self, estimate):
        if estimate.outcome is Outcome.NONFINITE:
            self._filter.scale(.5); return None
        one = self._few_rows.add(estimate)
        if one is not None:
            self._filter.add(one, step=estimate.step)
            self._last = estimate.step + 1 - self._found
            self._clamp()
        return None

    def _close(self, series):
        got = series.pooled()
        t = series.first - self._found
        gap = t - self._last
        self._last = t
        if got is None:
            if series.nonfinite: self._filter.scale(.5)
            return
        a, v = got
        K = series.first - series.since
        tg = target(series.since - self._found, t, X['c'], X['k0'])
        ratio = a / tg * (series.rate / self._filter.rate if K < X['le'] else 1.0)
        noise = v / tg**2 + X['floor']**2
        self._nspread += 1
        self._spread += (min(v / tg**2 * len(series.pairs), 10.) - self._spread) / min(self._nspread, 8)
        self._filter.correct(ratio, noise=noise, drifted=min(gap * X['drift']**2, X['dcap']**2))
        self._clamp()
        self.log.append((t, K, round(a, 2), round(v**.5, 2), round(tg, 2), float('%.3g' % self._filter.rate)))

    def _clamp(self) -> None:
        rate = self._filter.rate
        if (bounded := self.bounds.clamp(rate)) != rate:
            self._filter.scale(bounded / rate)

    def _cooling(self, step: int) -> bool:
        return self.cooldown is not None and step >= self.cooldown[0]

    def _left(self, step: int) -> float:
        if self.cooldown is None:
            return 1.0
        first, end = self.cooldown
        return min(1.0, max(0.0, (end - step) / (end - first)))
