"""NAdamW's step against torch's own optimizers on the same parameters, and its share of a training step."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from trainer.learner import ModelConfig, OptimizerConfig, build_model, build_optimizer
from trainer.learner.model import DLRM

T = TypeVar("T")

PEERS = {
    "torch NAdam, multi-tensor": OptimizerConfig(
        name="nadam", options={"foreach": True, "decoupled_weight_decay": True}
    ),
    "torch AdamW, multi-tensor": OptimizerConfig(name="adamw", options={"foreach": True}),
    "torch AdamW, fused": OptimizerConfig(name="adamw", options={"fused": True}),
}


class Subject:
    """One model with one optimizer, trained on random rows."""

    def __init__(self, model: ModelConfig, optimizer: OptimizerConfig, rows: int) -> None:
        self.model: DLRM = build_model(model, dense_features=13, sparse_features=26, seed=0)
        self.optimizer = build_optimizer(optimizer, self.model)
        generator = torch.Generator().manual_seed(0)
        table_rows = self.model.table.num_embeddings
        self.dense = torch.rand(rows, 13, generator=generator)
        self.ids = torch.randint(0, table_rows, (26, rows), generator=generator, dtype=torch.int32)
        self.label = (torch.rand(rows, generator=generator) < 0.25).float()

    def forward(self) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.model(self.dense, self.ids), self.label)

    def seconds(self) -> dict[str, float]:
        """Wall time of each part of one training step."""
        times = {}
        times["forward"], loss = _timed(self.forward)
        self.optimizer.zero_grad(set_to_none=True)
        times["backward"], _ = _timed(loss.backward)
        times["optimizer"], _ = _timed(self.optimizer.step)
        return times


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def compare(name: str, model: ModelConfig, *, rows: int, rounds: int) -> None:
    """Prints each peer's time over NAdamW's: the median of ratios within rounds, in which all take their turn."""
    subjects = {"NAdamW": Subject(model, OptimizerConfig(table="dense"), rows)}
    subjects |= {peer: Subject(model, config, rows) for peer, config in PEERS.items()}
    for subject in subjects.values():
        subject.seconds()
    measured = [{peer: subject.seconds() for peer, subject in subjects.items()} for _ in range(rounds)]
    parameters = sum(parameter.numel() for parameter in subjects["NAdamW"].model.parameters())
    print(f"{name}: {parameters:,} parameters, {rows} rows, {torch.get_num_threads()} threads, {rounds} rounds")
    for peer in PEERS:
        ratios = [turn[peer]["optimizer"] / turn["NAdamW"]["optimizer"] for turn in measured]
        print(f"  {peer:28} takes {statistics.median(ratios):5.2f} times NAdamW's step")
    for part in ("forward", "backward", "optimizer"):
        shares = [turn["NAdamW"][part] / sum(turn["NAdamW"].values()) for turn in measured]
        print(f"  {part:28} {statistics.median(shares):5.0%} of a training step with NAdamW")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compare("dlrm-tiny", ModelConfig(), rows=256, rounds=arguments.rounds)
    # an eighth of dlrm-small's table, so that four copies of everything fit an ordinary machine
    small = ModelConfig(preset="dlrm-small", table_rows=524_288)
    compare("dlrm-small, 524,288 table rows", small, rows=2048, rounds=max(3, arguments.rounds // 3))


if __name__ == "__main__":
    main()
