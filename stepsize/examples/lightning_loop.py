"""The same under Lightning, by manual optimization: python -m stepsize.examples.lightning_loop [STEPS]."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import torch
from lightning import LightningModule, Trainer  # pyright: ignore[reportMissingImports]
from torch import nn
from torch.utils.data import IterableDataset

from stepsize import RateController
from stepsize.examples.generated_clicks import ClickModel, batches


class ProbedBatches(IterableDataset):
    """Each batch with the next one, which probes its step. With a loader of your own: pairwise(loader)."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __iter__(self) -> Any:
        return pairwise(batches(self.steps + 1))


class ClickModule(LightningModule):
    """Manual optimization: the step is one line of ours, and the controller stands around it."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.loss, self.steps = ClickModel(), nn.BCEWithLogitsLoss(), steps
        self.controller: RateController | None = None
        self.rates: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-6)

    def on_train_start(self) -> None:
        """The weights lie on their device by now."""
        [optimizer] = self.trainer.optimizers  # torch's own; self.optimizers() wraps it
        self.controller = RateController(self.model, optimizer, self.loss, total_steps=self.steps)

    def training_step(self, pair: Any, index: int) -> None:
        (*x2, y2), (*x1, y1) = pair
        assert self.controller is not None
        optimizer: Any = self.optimizers()
        step = self.global_step
        optimizer.zero_grad()
        self.manual_backward(self.loss(self.model(*x2), y2))
        with self.controller.around_step(tuple(x1), y1, step=step) as rate:
            optimizer.step()
        self.rates.append(rate)

    def on_train_end(self) -> None:
        if self.controller is not None:
            self.controller.close()


def train_by_lightning(steps: int, **given: Any) -> list[float]:
    """The rate of each of `steps` steps; `given` goes to Lightning's Trainer."""
    module = ClickModule(steps)
    loader = torch.utils.data.DataLoader(ProbedBatches(steps), batch_size=None)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(max_steps=steps, max_epochs=1, **{**quiet, **given}).fit(module, loader)
    return module.rates


if __name__ == "__main__":
    print(*train_by_lightning(int(sys.argv[1]) if len(sys.argv) > 1 else 300), sep="\n")
