"""Steps of a small model on any number of ranks, for tests to compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops.step_clock import StepClock
from pipeline.device import DevicePair, ModelInputs
from pipeline.rows import RankShare, RowPosition
from stepsize import MeasuringOptions
from stepsize.losses import BCEWithLogits
from stepsize.policies import HorizonPlan
from stepsize.worker import Horizon, StepSizeWorker
from trainer.learner import ModelConfig, OptimizerConfig, build_average, build_model, build_optimizer
from trainer.ranks import Ranks, held_rows
from trainer.step import TrainStep, first_click_rows

STEPS = 6
DENSE, SPARSE = 3, 5


def batch(rows: int, seed: int, table_rows: int) -> ModelInputs:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn((rows, DENSE), generator=generator, dtype=torch.float64)
    ids = torch.randint(table_rows, (SPARSE, rows), generator=generator, dtype=torch.int32)
    return ModelInputs(dense, ids, (torch.rand(rows, generator=generator, dtype=torch.float64) < 0.3).double())


def part(whole: ModelInputs, ranks: Ranks) -> tuple[ModelInputs, int]:
    start, stop = RankShare(rank=ranks.rank, ranks=ranks.ranks).of(whole.rows)
    return ModelInputs(whole.dense[start:stop], whole.ids[:, start:stop], whole.label[start:stop]), start


def trained(ranks: Ranks, settings: dict[str, Any]) -> dict[str, Any]:
    """Some steps, α* of each and α_K over the last ones; this rank's rows of what is sharded."""
    dtype, table_rows = settings["dtype"], settings["table_rows"]
    config = ModelConfig(
        factory=settings["model"], table_rows=table_rows, embedding_dim=4, bottom=(8, 4), top=(6, 1), tables="shared"
    )
    model = build_model(config, dense_features=DENSE, sparse_features=SPARSE, seed=5, ranks=ranks).to(dtype)
    optimizer = build_optimizer(OptimizerConfig(**settings["optimizer"]), model)
    loss = BCEWithLogits(negative_weight=1.5)
    average = build_average(OptimizerConfig(**settings["optimizer"]), model)
    worker = StepSizeWorker(
        model,
        optimizer,
        loss,
        MeasuringOptions(probe_fraction=settings["probe_fraction"], method=settings.get("method", "jvp")),
        take_rows=first_click_rows,
        delay=1,
        gather=None if ranks.alone else ranks.gather,
    )
    horizon = Horizon(worker)
    step = TrainStep(
        model=model,
        optimizer=optimizer,
        worker=worker,
        horizon=horizon,
        average=average,
        clock=StepClock(),
        loss=loss,
        ranks=ranks,
    )
    losses, estimates = [], []
    batches = [batch(rows, 100 + number, table_rows) for number, rows in enumerate(settings["batch_rows"])]
    batches = [replace_dtype(one, dtype) for one in batches]
    for number in range(STEPS):
        b2, b1 = batches[number], batches[number + 1]
        own2, start2 = part(b2, ranks)
        own1, start1 = part(b1, ranks)
        pair = DevicePair(
            b1=own1, b2=own2, b1_rows=b1.rows, b1_start=start1, b2_rows=b2.rows, b2_start=start2, fresh=True,
            epoch=0, start=0, position=RowPosition(), skipped=0,
        )  # fmt: skip
        plan = HorizonPlan(since=2 if number == 4 else None, keep=number == 1, forget=())
        done = step(pair, step=number, learning_rate=settings["lr"], measure=True, plan=plan)
        losses.append(done.loss.item())
        estimates += worker.poll(step=number)
    estimates += worker.flush(step=STEPS - 1)
    places = held_rows(model)
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{key}/{names[index]}": value for key, value in state.items() if isinstance(value, Tensor)}
    if average is not None:
        tensors |= {f"average/{name}": value for name, value in average.state_dict().items()}
    return {
        "losses": losses,
        "estimates": [
            (e.step, e.horizon, e.outcome.value, e.rows, e.loss, e.slope, e.curvature, e.relative, e.standard_error)
            for e in estimates
        ],
        "tensors": {name: torch.as_tensor(value).detach().clone() for name, value in tensors.items()},
        "places": {name: (place.start, place.stop, place.rows) for name, place in places.items()},
        "largest": max(parameter.numel() for parameter in model.parameters()),
    }


def replace_dtype(inputs: ModelInputs, dtype: torch.dtype) -> ModelInputs:
    return ModelInputs(inputs.dense.to(dtype), inputs.ids, inputs.label.to(dtype))


CASES = {
    "nadamw": {"optimizer": {"name": "nadamw", "table": "dense", "average": "ema"}},
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.1}},
    "adamw, deepfm, a fraction": {
        "optimizer": {"name": "adamw"}, "model": "deepfm", "probe_fraction": 0.4,
    },
    "dcn_v2, fewer rows than ranks": {
        "optimizer": {"name": "nadamw", "table": "dense"}, "model": "dcn_v2", "batch_rows": [7, 2, 1, 2, 5, 1, 3],
    },
    "more ranks than rows of the table": {
        "optimizer": {"name": "nadamw", "table": "dense"}, "table_rows": 2,
    },
    "secant": {"optimizer": {"name": "nadamw", "table": "dense"}, "method": "secant"},
}  # fmt: skip


def settings_of(case: str) -> dict[str, Any]:
    defaults = {
        "dtype": torch.float64,
        "table_rows": 37,
        "model": "dlrm",
        "probe_fraction": 1.0,
        "batch_rows": [17, 19, 16, 17, 15, 11, 13],
        "lr": 0.02,
    }
    return defaults | CASES[case]


def trained_all(ranks: Ranks) -> dict[str, Any]:
    return {case: trained(ranks, settings_of(case)) for case in CASES}
