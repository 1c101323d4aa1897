"""What a step adds up over ranks: gradients of what all have alike, its loss and whether its numbers are finite.

All of it goes in one all-reduce, once the backward pass is through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.ranks.group import Ranks
from trainer.ranks.table import held_rows


class StepSums:
    """The sums of one model's steps."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        sharded = held_rows(model)
        self._ranks = ranks
        self._alike = [parameter for name, parameter in model.named_parameters() if name not in sharded]

    @torch.no_grad()
    def __call__(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        """Replaces the gradients of what is not sharded by their sums over ranks; returns the sums of `numbers`,
        scalars in the gradients' type.

        A parameter without a gradient on this rank counts with 0, as one of a rank without rows does.
        """
        first = self._alike[0]
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in self._alike]
        told = torch.stack([number.to(first.dtype) for number in numbers])
        together = torch.cat([*(part.reshape(-1) for part in parts), told])
        self._ranks.sum(together, what="gradients")
        *sums, told = together.split([*(part.numel() for part in parts), len(numbers)])
        for parameter, total in zip(self._alike, sums, strict=True):
            parameter.grad = total.view_as(parameter)
        return list(told)
