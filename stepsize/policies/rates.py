"""Setting an optimizer's learning rate from outside."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give the first parameter group `rate` and each other group its share, in place where the rate is a tensor.

    The shares are those of the rates that the groups began with, which are noted as `initial_lr`, where torch's
    schedules keep them too; so a rate of zero on the way loses nothing. With a first rate of zero all get `rate`.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    first = float(optimizer.param_groups[0]["initial_lr"])
    for group in optimizer.param_groups:
        share = float(group["initial_lr"]) / first if first else 1.0
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(share * rate)
        else:
            group["lr"] = share * rate
