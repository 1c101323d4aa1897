"""A loop of one's own, as in stepsize/README.md, on made-up batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from stepsize import RateController


def losses_under_auto(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: nn.Module,
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    *,
    steps: int,
) -> tuple[list[float], list[str]]:
    """Trains for `steps` steps, each probed on the next batch; the loss before each, and what was said."""
    controller = RateController(model, optimizer, loss, total_steps=steps)
    losses: list[float] = []
    said: list[str] = []
    probe = batch()
    for step in range(steps):
        (x, y), probe = probe, batch()
        optimizer.zero_grad()
        (now := loss(model(x), y)).backward()
        losses.append(now.item())
        with controller.around_step((probe[0],), probe[1], step=step):
            optimizer.step()
        said += controller.said
    return losses, said
