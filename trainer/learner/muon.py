"""Muon for the matrices of hidden layers and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer


class MuonWithAdamW(Optimizer):
    """torch's Muon orthogonalizes matrices only; tables, biases and one-column layers are AdamW's.

    Both run at one `lr`: Muon's update is scaled to AdamW's root mean square (`match_rms_adamw`).
    `betas` and `eps` are AdamW's, the further keyword arguments Muon's.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
    ) -> None:
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
        matrices, others = [], []
        for parameter in model.parameters():
            hidden = parameter.ndim == 2 and min(parameter.shape) > 1 and id(parameter) not in tables
            (matrices if hidden else others).append(parameter)
        parts: list[Optimizer] = []
        if matrices:
            parts.append(
                torch.optim.Muon(
                    matrices,
                    lr=lr,
                    weight_decay=weight_decay,
                    momentum=momentum,
                    nesterov=nesterov,
                    ns_steps=ns_steps,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            parts.append(AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both parts' steps; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # loading a state replaces these objects, so the parts take them anew
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a part's own group; a group from elsewhere has no part and is refused."""
        if not any(param_group is group for group in _groups(self._parts)):
            raise ValueError("Muon's groups follow from the model; build the optimizer anew for another model")
        super().add_param_group(param_group)


def _groups(parts: Iterable[Optimizer]) -> list[dict[str, Any]]:
    return [group for part in parts for group in part.param_groups]
