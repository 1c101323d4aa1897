"""Each way to α* of one step, timed: by a JVP, by a secant, by curvlinops, and as the published study went about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stepsize import BCEWithLogits, StepSizeWorker
from trainer.learner import ModelConfig, OptimizerConfig, build_model, build_optimizer

PLAIN, JVP, SECANT = "plain step", "α*, one JVP", "α*, secant"
PRODUCT, CHECKED = "α*, curvlinops without its self-check", "α*, curvlinops with its self-check"
ORIGINAL_OPERATOR, ORIGINAL_REST = "the original's operator", "the original's other α* work"
DENSE, SPARSE = 13, 26

Batch = tuple[tuple[Tensor, Tensor], Tensor]


class OfOneMapping(nn.Module):
    """The model as a function of one mapping, which is what curvlinops hands on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits (R, 1)."""
        return self.model(*inputs.values())[:, None]


class Ways:
    """A DLRM trained by NAdamW on random rows, whose steps move every row of the table as in the published study."""

    def __init__(self, config: ModelConfig, *, batch_rows: int, device: torch.device, curvlinops: bool) -> None:
        sizes = config.resolved()
        assert sizes.table_rows is not None
        self.rows, self.table_rows, self.device, self.curvlinops = batch_rows, sizes.table_rows, device, curvlinops
        self.model = build_model(config, dense_features=DENSE, sparse_features=SPARSE, seed=0).to(device)
        self.optimizer = build_optimizer(OptimizerConfig(table="dense").resolved(sizes.preset), self.model)
        self.loss = nn.BCEWithLogitsLoss()
        self.workers = {
            JVP: StepSizeWorker(self.model, self.optimizer, BCEWithLogits(), self_check=False),
            SECANT: StepSizeWorker(self.model, self.optimizer, BCEWithLogits(), method="secant"),
        }
        self.generator = torch.Generator().manual_seed(0)

    def round(self) -> Mapping[str, float]:
        """Seconds of a plain step, and of what each way to its α* takes beside it, once each."""
        b1, b2 = self.batch(), self.batch()
        seconds = {PLAIN: self._seconds(lambda: self.training_step(b2))}
        for name, worker in self.workers.items():
            self.gradient(b2)
            before = self._seconds(lambda worker=worker: worker.before_step(*b1, step=0))
            self.optimizer.step()
            seconds[name] = before + self._seconds(lambda worker=worker: (worker.after_step(), worker.poll()))
        if self.curvlinops:
            direction = self._direction(b2)
            seconds[PRODUCT] = self._seconds(lambda: self.by_curvlinops(b1, direction, check=False))
            seconds[CHECKED] = self._seconds(lambda: self.by_curvlinops(b1, direction, check=True))
            seconds |= self.by_the_original_way(b1, direction)
        return seconds

    def batch(self) -> Batch:
        """Random rows."""
        dense = torch.rand(self.rows, DENSE, generator=self.generator)
        ids = torch.randint(self.table_rows, (SPARSE, self.rows), generator=self.generator, dtype=torch.int32)
        targets = (torch.rand(self.rows, generator=self.generator) < 0.25).float()
        return (dense.to(self.device), ids.to(self.device)), targets.to(self.device)

    def gradient(self, batch: Batch) -> None:
        """One forward and backward pass."""
        self.optimizer.zero_grad(set_to_none=True)
        inputs, targets = batch
        self.loss(self.model(*inputs), targets).backward()

    def training_step(self, batch: Batch) -> None:
        """Gradient and optimizer step."""
        self.gradient(batch)
        self.optimizer.step()

    def by_curvlinops(self, b1: Batch, direction: list[Tensor], *, check: bool) -> float:
        """α* from B1's gradient and a Gauss-Newton product, on the device."""
        self.gradient(b1)
        slope = sum(float((p.grad * d).sum()) for p, d in self._along(direction))
        product = self._operator(b1, check=check) @ direction
        return -slope / sum(float((c * d).sum()) for c, d in zip(product, direction, strict=True))

    def by_the_original_way(self, b1: Batch, direction: list[Tensor]) -> dict[str, float]:
        """Seconds of the operator, rebuilt with its self-check, with its product; and of gradient, direction and dot
        products as vectors on the host."""
        start = self._now()
        self.gradient(b1)
        gradient = np.concatenate([p.grad.cpu().numpy().ravel() for p, _ in self._along(direction)])
        along = np.concatenate([d.cpu().numpy().ravel() for d in direction])
        middle = self._now()
        product = self._operator(b1, check=True).to_scipy() @ along
        end = self._now()
        _ = -(along @ gradient) / (along @ product)
        return {ORIGINAL_OPERATOR: end - middle, ORIGINAL_REST: middle - start + self._now() - end}

    def _along(self, direction: list[Tensor]) -> list[tuple[Any, Tensor]]:
        """Every parameter, which all have a gradient, with its part of the direction."""
        return list(zip(self.model.parameters(), direction, strict=True))

    def _direction(self, batch: Batch) -> list[Tensor]:
        """What a step moves, as dense tensors."""
        before = [p.detach().clone() for p in self.model.parameters()]
        self.training_step(batch)
        return [p.detach() - old for p, old in zip(self.model.parameters(), before, strict=True)]

    def _operator(self, b1: Batch, *, check: bool) -> Any:
        from curvlinops import GGNLinearOperator

        (dense, ids), targets = b1
        return GGNLinearOperator(
            OfOneMapping(self.model),
            self.loss,
            list(self.model.parameters()),
            [({"dense": dense, "ids": ids}, targets[:, None])],
            check_deterministic=check,
            batch_size_fn=lambda _: len(targets),
        )

    def _seconds(self, call: Callable[[], object]) -> float:
        start = self._now()
        call()
        return self._now() - start

    def _now(self) -> float:
        """The clock, once the device is through with what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
