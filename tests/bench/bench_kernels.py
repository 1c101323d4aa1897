"""NAdamW on CUDA: its fused pass against multi-tensor passes and torch's own, and a table by rows against moved whole.

Prints ratios within one run, by timing events, and a line of JSON with all of them. Without CUDA it says so and ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pipeline.schema import CRITEO
from tests.bench.bench_table import SKEW
from trainer.learner import kernels
from trainer.learner.model import ModelConfig, build_model
from trainer.learner.nadamw import NAdamW, Piece, _move_in_waves
from trainer.learner.optimizers import OptimizerConfig, build_optimizer

Step = Callable[[], object]


class MultiTensor(NAdamW):
    """NAdamW by torch's multi-tensor operations, as where Triton cannot run."""

    def _move_group(self, parameters: list[Tensor], group: dict) -> None:
        pieces: list[Piece] = [self._piece_of(parameter, group) for parameter in parameters]
        _move_in_waves(pieces, group)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "ours, fused": NAdamW,
    "ours, multi-tensor": MultiTensor,
    "torch NAdam, multi-tensor": lambda parameters: torch.optim.NAdam(
        parameters, foreach=True, decoupled_weight_decay=True
    ),
    "torch AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
}


def seconds_a_step(step: Step, steps: int) -> float:
    """Of the device, by events around `steps` steps."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / steps


def in_turns(subjects: dict[str, Step], *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of every subject in each of the rounds, in which all take a turn."""
    for step in subjects.values():
        step()
        step()
    torch.cuda.synchronize()
    measured: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, step in subjects.items():
            measured[name].append(seconds_a_step(step, steps))
    return measured


def ratios_to(first: str, measured: dict[str, list[float]]) -> dict[str, list[float]]:
    """Minimum, median and maximum of every other's time over that of `first` in the same round."""
    found = {}
    for name, times in measured.items():
        if name != first:
            ratios = [one / other for one, other in zip(times, measured[first], strict=True)]
            found[name] = [min(ratios), statistics.median(ratios), max(ratios)]
    return found


def optimizers_alone(table_rows: int, *, rounds: int, steps: int) -> dict[str, object]:
    """Each optimizer's step on dlrm-small's parameters with gradients that stay; one after the other in memory."""
    sizes = ModelConfig(preset="dlrm-small", table_rows=table_rows)
    model = build_model(sizes, dense_features=13, sparse_features=26, seed=0).to("cuda")
    subjects: dict[str, Step] = {}
    for name, make in OPTIMIZERS.items():
        parameters = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter) * 1e-4
        subjects[name] = make(parameters).step
    measured = in_turns(subjects, rounds=rounds, steps=steps)
    elements = sum(parameter.numel() for parameter in model.parameters())
    best = min(measured["ours, fused"])
    return {
        "elements": elements,
        "ratio": ratios_to("ours, fused", measured),
        "seven_words_gigabytes_a_second": 7 * 4 * elements / best / 1e9,
    }


def skewed_batch(rows: int, table_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Dense features (R, 13), ids (26, R) as skewed as those of `bench_table`, and labels (R,), made on the device."""
    device = generator.device
    sizes = torch.tensor(CRITEO.bucket_sizes, dtype=torch.float64, device=device).unsqueeze(1)
    columns = torch.arange(26, device=device).unsqueeze(1)
    uniform = torch.rand(26, rows, dtype=torch.float64, device=device, generator=generator)
    rank = (((sizes ** (1 - SKEW) - 1) * uniform + 1) ** (1 / (1 - SKEW))).long()
    ids = (rank * 2_654_435_761 + columns * 2_650_845_021) % (1 << 47) % table_rows
    dense = torch.rand(rows, 13, device=device, generator=generator)
    return dense, ids, (torch.rand(rows, device=device, generator=generator) < 0.25).float()


class Training:
    """Steps of dlrm-small, each on the next of some batches."""

    def __init__(self, table: str, table_rows: int) -> None:
        sizes = ModelConfig(preset="dlrm-small", table_rows=table_rows)
        self.model = build_model(sizes, dense_features=13, sparse_features=26, seed=0).to("cuda")
        config = OptimizerConfig(table=table).resolved("dlrm-small")  # pyright: ignore[reportArgumentType]
        self.optimizer = build_optimizer(config, self.model)
        self.batches: Iterator[tuple[Tensor, Tensor, Tensor]] = iter(())

    def step(self) -> None:
        dense, ids, label = next(self.batches)
        loss = nn.functional.binary_cross_entropy_with_logits(self.model(dense, ids), label)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def flush(self) -> None:
        """What an evaluation over every row of the table would make of it."""
        self.model.table.weight.detach()[0].sum()


def tables(table_rows: int, rows: int, *, warmup: int, rounds: int, steps: int) -> dict[str, object]:
    """A training step with the table kept by rows, after `warmup` steps, against the same with it moved whole.

    Every batch is new to both, so that rows are as far behind as in a run that has come as far.
    """
    generator = torch.Generator("cuda").manual_seed(1)
    lazy, dense = Training("lazy", table_rows), Training("dense", table_rows)
    lazy.batches = (skewed_batch(rows, table_rows, generator) for _ in range(warmup))
    for _ in range(warmup):
        lazy.step()
    held = [skewed_batch(rows, table_rows, generator) for _ in range(2 + rounds * steps)]
    lazy.batches, dense.batches = iter(held), iter(held)
    measured = in_turns({"lazy": lazy.step, "dense": dense.step}, rounds=rounds, steps=steps)
    best = min(measured["lazy"])
    return {
        "rows": rows,
        "table_rows": table_rows,
        "steps_before": warmup,
        "ratio": ratios_to("lazy", measured),
        "rows_a_second": rows / best,
        "read_of_the_whole_table_in_steps": seconds_a_step(lazy.flush, 1) / best,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table-rows", type=int, default=4_194_304)
    parser.add_argument("--rows", type=int, nargs="*", default=[32_768, 262_144])
    parser.add_argument("--warmup", type=int, default=200, help="steps by rows before measuring")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of each subject in a round")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device is here; nothing is measured")
        return 0
    unusable = kernels.unusable(torch.device("cuda", torch.cuda.current_device()))
    if unusable is not None:
        print(f"Triton's kernels cannot run: {unusable}", file=sys.stderr)
        return 1
    found: dict[str, object] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    found["optimizers"] = optimizers_alone(arguments.table_rows, rounds=arguments.rounds, steps=arguments.steps)
    print(json.dumps(found["optimizers"], indent=1), flush=True)
    torch.cuda.empty_cache()
    by_rows: list[dict[str, object]] = []
    for rows in arguments.rows:
        one = tables(
            arguments.table_rows, rows, warmup=arguments.warmup, rounds=arguments.rounds, steps=arguments.steps
        )
        by_rows.append(one)
        print(json.dumps(one, indent=1), flush=True)
        torch.cuda.empty_cache()
    print(json.dumps({**found, "tables": by_rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
