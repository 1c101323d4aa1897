"""The same under the Trainer of Hugging Face: python -m stepsize.examples.hf_trainer [STEPS]."""

from __future__ import annotations

import sys
import tempfile
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments  # pyright: ignore[reportMissingImports]

from stepsize import RateController
from stepsize.examples.generated_clicks import ClickModel, batches


class WithLoss(nn.Module):
    """What the Trainer expects of a model: a loss beside the logits, by name."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, dense: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(dense, ids)
        return {"loss": self.loss(logits, labels), "logits": logits}


class PairsOfBatches(Dataset):
    """Each batch with the next one, which probes its step."""

    def __init__(self, steps: int) -> None:
        named = [dict(zip(("dense", "ids", "labels"), batch, strict=True)) for batch in batches(steps + 1)]
        self.pairs = [{"batch": batch, "probe": probe} for batch, probe in pairwise(named)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pairs[index]


class AtTheRateOf(TrainerCallback):
    """Enters `around_step` where the Trainer is about to step, and leaves it where it has stepped."""

    def __init__(self, controller: RateController) -> None:
        self.controller = controller
        self.probe: dict[str, Tensor] = {}
        self.rates: list[float] = []
        self._step: Any = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        inputs = (self.probe["dense"], self.probe["ids"])
        self._step = self.controller.around_step(inputs, self.probe["labels"], step=state.global_step)
        self._step.__enter__()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        # what the optimizer has stepped with, not what it was told to
        self.rates.append(float(given["optimizer"].param_groups[0]["lr"]))
        self._step.__exit__(None, None, None)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.controller.close()


class RateTrainer(Trainer):
    """Trains on the one batch of a pair and keeps the other for the callback."""

    def __init__(self, *args: Any, rule: AtTheRateOf, **given: Any) -> None:
        super().__init__(*args, callbacks=[rule], **given)
        self.rule = rule

    def get_train_dataloader(self) -> DataLoader:
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_size=None)  # in order, each pair as it is

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **given: Any) -> Tensor:
        self.rule.probe = self._prepare_inputs(inputs["probe"])
        return super().training_step(model, inputs["batch"], *args, **given)


def train_by_hf(steps: int, **given: Any) -> list[float]:
    """The rate of each of `steps` steps; `given` goes to `TrainingArguments`."""
    model, loss = ClickModel(), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    rule = AtTheRateOf(RateController(model, optimizer, loss, total_steps=steps))
    with tempfile.TemporaryDirectory() as folder:
        ours = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": steps, "use_cpu": True}
        quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        arguments = TrainingArguments(folder, **{**ours, **quiet, **given})
        trainer = RateTrainer(
            WithLoss(model, loss),
            arguments,
            train_dataset=PairsOfBatches(steps),
            rule=rule,
            optimizers=(optimizer, None),
        )
        trainer.train()
    return rule.rates


if __name__ == "__main__":
    print(*train_by_hf(int(sys.argv[1]) if len(sys.argv) > 1 else 300), sep="\n")
