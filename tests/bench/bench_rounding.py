"""How far apart runs end that differ in rounding alone: by one process and by several ranks, with α* applied.

`python -m tests.bench.bench_rounding [--data DATA] [--policy auto] [--ranks 2 3] [--seed N]`.
The runs are those of one configuration, `dlrm-tiny` for one epoch. Those of one process take the
same sums in another order: on two threads, by other instructions, with the rows of each batch turned round, with each
batch as two parts whose gradients are added. Their validation losses, and how they differ, are what rounding makes of
this run; that of several ranks in float32 is to be one more of them. In float64, whose rounding is 2⁻²⁹ of that, ranks
are to end where one process ends.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.device import DevicePair, ModelInputs
from tests.bench.rows import add_data_argument, data_folder
from tests.unit.trainer.ranks.processes import on_ranks
from trainer.config import config_from
from trainer.console import Console
from trainer.job import learner as job_learner
from trainer.job import train
from trainer.ranks import ALONE, Ranks
from trainer.records import read_records
from trainer.step import TrainStep


class Losses(NamedTuple):
    """Of a run."""

    splits: dict[str, float]
    """At its end."""
    steps: list[float]


SLOW_INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
OTHERWISE: dict[str, dict[str, Any]] = {
    "on two threads": {"threads": 2},
    "by other instructions": {"environment": SLOW_INSTRUCTIONS},
    "rows turned round": {"turned": True},
    "in two parts": {"parts": True},
    "in two parts, rows turned round": {"parts": True, "turned": True},
}


def losses(ranks: Ranks, settings: Mapping[str, Any]) -> Losses:
    """Of a whole run, in this process or in this rank of several."""
    torch.set_num_threads(settings.get("threads", 1))
    _change(settings)
    config = config_from(settings["config"], where="the benchmark")
    train(config, settings["run"], console=Console(quiet=True), ranks=ranks)
    splits, steps = (read_records(Path(settings["run"]) / f"{name}.jsonl") for name in ("evals", "steps"))
    return Losses({record["split"]: record["loss"] for record in splits}, [record["loss"] for record in steps])


def _change(settings: Mapping[str, Any]) -> None:
    """Has this process, which trains nothing else, take its sums as the settings say."""
    build, make_step = job_learner.build_model, TrainStep.__call__

    def built(*arguments: Any, **options: Any) -> nn.Module:
        model = build(*arguments, **options)
        if settings.get("parts"):
            _in_two_parts(model)
        return _in_float64(model) if settings.get("float64") else model

    def step(self: TrainStep, pair: DevicePair, **options: Any) -> Any:
        change: Callable[[ModelInputs], ModelInputs] = lambda batch: batch  # noqa: E731
        if settings.get("turned"):
            change = _turned
        elif settings.get("float64"):
            change = _wide
        return make_step(self, replace(pair, b1=change(pair.b1), b2=change(pair.b2)), **options)

    job_learner.build_model = built
    TrainStep.__call__ = step


def _turned(batch: ModelInputs) -> ModelInputs:
    return ModelInputs(batch.dense.flip(0), batch.ids.flip(1), batch.label.flip(0))


def _wide(batch: ModelInputs) -> ModelInputs:
    return ModelInputs(batch.dense.double(), batch.ids, batch.label.double())


def _in_two_parts(model: nn.Module) -> None:
    forward = model.forward

    def in_parts(dense: Tensor, ids: Tensor) -> Tensor:
        half = len(dense) // 2
        return torch.cat([forward(dense[:half], ids[:, :half]), forward(dense[half:], ids[:, half:])])

    model.forward = in_parts


def _in_float64(model: nn.Module) -> nn.Module:
    model = model.double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(), *inputs[1:]))  # of evaluations
    return model


@contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    """For processes that begin within it."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def by_one_process(settings: Mapping[str, Any]) -> Losses:
    with (
        environment(settings.get("environment", {})),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        return pool.submit(losses, ALONE, settings).result()


def report(name: str, found: Losses, of: Losses) -> None:
    apart = ", ".join(f"{split} {loss:.8f} ({loss - of.splits[split]:+.1e})" for split, loss in found.splits.items())
    steps = max(abs(loss - other) for loss, other in zip(found.steps, of.steps, strict=True))
    print(f"{name}: {apart}, steps at most {steps:.0e} apart", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_argument(parser)
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = {
            "data": {"path": str(data_folder(options.data, stack)), "seed": options.seed},
            "model": {"preset": "dlrm-tiny"},
            "stepsize": {"policy": options.policy},
            "budget": {"epochs": 1},
            "checkpoint": {"every_seconds": 1e6},
            "metrics": {"port": -1},
        }

        def by(ranks: int, name: str, **more: Any) -> Losses:
            settings = {"config": config, "run": str(folder / f"{ranks} {name}"), **more}
            if ranks == 1:
                return by_one_process(settings)
            return on_ranks(ranks, losses, settings, folder=folder)[0]

        by_one = [by(1, "as it is")]
        report("float32, one process", by_one[0], by_one[0])
        for name, more in OTHERWISE.items():
            by_one.append(by(1, name, **more))
            report(f"float32, one process, {name}", by_one[-1], by_one[0])
        for split in by_one[0].splits:
            values = [found.splits[split] for found in by_one]
            print(f"  {split}: from {min(values):.8f} to {max(values):.8f}, {max(values) - min(values):.1e} apart")
        for ranks in options.ranks:
            report(f"float32, {ranks} ranks", by(ranks, "as it is"), by_one[0])
        exact = by(1, "float64", float64=True)
        report("float64, one process", exact, exact)
        for ranks in options.ranks:
            report(f"float64, {ranks} ranks", by(ranks, "float64", float64=True), exact)


if __name__ == "__main__":
    main()
