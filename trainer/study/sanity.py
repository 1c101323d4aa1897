"""Check 4.1.1 of the published study: where the right step is known, α* is that step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from stepsize import Estimate, StepSizeWorker

TOLERANCE = 1e-6
METHODS: tuple[Literal["jvp", "secant"], ...] = ("jvp", "secant")
SAMPLES = ((1.0, 3.0), (2.0, -1.0), (-0.5, 4.0), (10.0, 0.25))
"""Input x and target y of the one sample."""
RATES = (1e-4, 0.1, 2.0)
START = 0.7


@dataclass(frozen=True, kw_only=True)
class Landing:
    """Where α* times the step ends in a model z = w·x with the loss (z − y)²."""

    method: str
    x: float
    target: float
    rate: float
    """Of the SGD step that was scaled."""
    relative: float
    """α*, the factor of the step."""
    weight: float
    """w0 + α*·d."""
    optimum: float
    """y / x."""
    prediction: float
    loss: float

    @property
    def lands(self) -> bool:
        """Whether optimum, target and zero loss are met within 1e-6."""
        apart = (self.weight - self.optimum, self.prediction - self.target, self.loss)
        return all(abs(value) <= TOLERANCE for value in apart)  # false for nan


def landings() -> Iterator[Landing]:
    """Every sample, rate and way to measure; float64, the one sample is both batches."""
    for method, (x, target), rate in itertools.product(METHODS, SAMPLES, RATES):
        model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            model.weight.fill_(START)
        yield _landing(model, x, target, rate, method)


def _landing(model: nn.Linear, x: float, target: float, rate: float, method: Literal["jvp", "secant"]) -> Landing:
    inputs = torch.tensor([[x]], dtype=torch.float64)
    targets = torch.tensor([[target]], dtype=torch.float64)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=rate), nn.MSELoss()
    worker = StepSizeWorker(model, optimizer, loss, method=method)
    before = model.weight.item()
    loss(model(inputs), targets).backward()
    with worker.around_step(inputs, targets, step=0):
        optimizer.step()
    estimate: Estimate = worker.poll(step=0)[0]
    relative = float("nan") if estimate.relative is None else estimate.relative
    with torch.no_grad():
        model.weight.fill_(before + relative * (model.weight.item() - before))
        prediction = model(inputs)
        return Landing(
            method=method,
            x=x,
            target=target,
            rate=rate,
            relative=relative,
            weight=model.weight.item(),
            optimum=target / x,
            prediction=prediction.item(),
            loss=loss(prediction, targets).item(),
        )
