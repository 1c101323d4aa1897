"""A plain loop whose rate the policy sets: python -m stepsize.examples.plain_loop [STEPS]."""

from __future__ import annotations

import sys
from itertools import pairwise

import torch
from torch import nn

from stepsize import RateController
from stepsize.examples.generated_clicks import ClickModel, batches


def train_plainly(steps: int) -> list[float]:
    """The rate of each of `steps` steps."""
    model, loss = ClickModel(), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)  # a first guess and no more
    controller = RateController(model, optimizer, loss, total_steps=steps)
    rates = []
    for step, ((*x2, y2), (*x1, y1)) in enumerate(pairwise(batches(steps + 1))):  # the next batch probes this step
        optimizer.zero_grad()
        loss(model(*x2), y2).backward()
        with controller.around_step(tuple(x1), y1, step=step) as rate:
            optimizer.step()
        rates.append(rate)
    controller.close()
    return rates


if __name__ == "__main__":
    print(*train_plainly(int(sys.argv[1]) if len(sys.argv) > 1 else 300), sep="\n")
