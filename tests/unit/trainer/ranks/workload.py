"""Steps of a small model on any number of ranks, for tests to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ops.step_clock import StepClock
from pipeline.device import DevicePair, ModelInputs
from pipeline.rows import RankShare, RowPosition
from stepsize import MeasuringOptions
from stepsize.losses import BCEWithLogits, WeightedRows
from stepsize.policies import HorizonPlan, StepSizeConfig, make_policy
from stepsize.worker import Horizon, StepSizeWorker
from trainer.learner import ModelConfig, OptimizerConfig, build_average, build_model, build_optimizer
from trainer.ranks import Ranks, held_rows, sharded_tables
from trainer.step import TrainStep, first_click_rows

STEPS = 6
DENSE, SPARSE = 3, 5


def batch(rows: int, seed: int, table_rows: int) -> ModelInputs:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn((rows, DENSE), generator=generator, dtype=torch.float64)
    ids = torch.randint(table_rows, (SPARSE, rows), generator=generator, dtype=torch.int32)
    label = (torch.rand(rows, generator=generator, dtype=torch.float64) < 0.3).double()
    return ModelInputs(dense, ids, label).weighed_by(torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1)


def part(whole: ModelInputs, ranks: Ranks) -> tuple[ModelInputs, int]:
    start, stop = RankShare(rank=ranks.rank, ranks=ranks.ranks).of(whole.rows)
    weight = None if whole.weight is None else whole.weight[start:stop]
    own = ModelInputs(whole.dense[start:stop], whole.ids[:, start:stop], whole.label[start:stop]).weighed_by(weight)
    return own, start


@dataclass(frozen=True)
class Parts:
    """What makes the steps."""

    step: TrainStep
    worker: StepSizeWorker


def built(ranks: Ranks, settings: dict[str, Any]) -> Parts:
    """A small model with its optimizer and measurements, of `ranks` this one's part."""
    dtype, table_rows = settings["dtype"], settings["table_rows"]
    tables, sizes = ("per_feature", PER_FEATURE) if settings.get("per_feature") else ("shared", None)
    config = ModelConfig(
        factory=settings["model"], table_rows=table_rows, embedding_dim=4, bottom=(8, 4), top=(6, 1), tables=tables
    )
    features = {"dense_features": DENSE, "sparse_features": SPARSE, "bucket_sizes": sizes}
    model = build_model(config, **features, seed=5, ranks=ranks).to(dtype)
    optimizer = build_optimizer(OptimizerConfig(**settings["optimizer"]), model)
    loss = BCEWithLogits(negative_weight=1.5)
    if settings.get("weighted"):
        loss = WeightedRows(loss)
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
    return Parts(step, worker)


def pair_of(ranks: Ranks, b2: ModelInputs, b1: ModelInputs) -> DevicePair:
    """This rank's shares of two batches."""
    (own2, start2), (own1, start1) = part(b2, ranks), part(b1, ranks)
    return DevicePair(
        b1=own1, b2=own2, b1_rows=b1.rows, b1_start=start1, b2_rows=b2.rows, b2_start=start2, fresh=True,
        epoch=0, start=0, position=RowPosition(), skipped=0,
    )  # fmt: skip


def trained(ranks: Ranks, settings: dict[str, Any]) -> dict[str, Any]:
    """Some steps, α* of each and α_K over the last ones; this rank's rows of what is sharded."""
    dtype, table_rows = settings["dtype"], settings["table_rows"]
    parts = built(ranks, settings)
    step, worker = parts.step, parts.worker
    model, optimizer, average = step.model, step.optimizer, step.average
    losses, estimates = [], []
    batches = [batch(rows, 100 + number, table_rows) for number, rows in enumerate(settings["batch_rows"])]
    batches = [replace_dtype(one, dtype) for one in batches]
    for number in range(STEPS):
        pair = pair_of(ranks, batches[number], batches[number + 1])
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
        "places": {name: (place.rank, place.ranks, place.rows) for name, place in places.items()},
        "largest": max(parameter.numel() for parameter in model.parameters()),
    }


def replace_dtype(inputs: ModelInputs, dtype: torch.dtype) -> ModelInputs:
    weight = None if inputs.weight is None else inputs.weight.to(dtype)
    return ModelInputs(inputs.dense.to(dtype), inputs.ids, inputs.label.to(dtype)).weighed_by(weight)


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
    "weights of rows": {
        "optimizer": {"name": "sgd", "lr": 0.1}, "weighted": True, "batch_rows": [7, 2, 9, 2, 5, 11, 3],
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


IN_FLOAT32 = "sgd", "nadamw", "weights of rows"


def trained_in_float32(ranks: Ranks) -> dict[str, Any]:
    return {case: trained(ranks, settings_of(case) | {"dtype": torch.float32}) for case in IN_FLOAT32}


AUTO_STEPS = 60


def rates_of_auto(ranks: Ranks) -> list[float]:
    """The rates that policy `auto` chooses, step by step."""
    settings = settings_of("nadamw")
    parts = built(ranks, settings)
    policy = make_policy(StepSizeConfig(policy="auto"), initial_rate=1e-6, total_steps=AUTO_STEPS)
    rates = []
    for number in range(AUTO_STEPS):
        rates.append(policy.learning_rate(number, 1e-6))
        pair = pair_of(ranks, batch(23, 2 * number, 37), batch(23, 2 * number + 2, 37))
        plan = policy.horizon(number + 1)
        parts.step(pair, step=number, learning_rate=rates[-1], measure=policy.wants(number), plan=plan)
        for estimate in parts.worker.poll(step=number):
            policy.observe(estimate)
    return rates


class Largest(TorchDispatchMode):
    """The most numbers that any operation's result has memory for."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self.numbers = max(self.numbers, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


LARGE_ROWS, WIDTH = 30_011, 4


def largest_of_a_step(ranks: Ranks) -> int:
    """Of building a model with a table that is larger than all else, and steps that measure α* and α_K."""
    settings = settings_of("nadamw") | {"table_rows": LARGE_ROWS, "dtype": torch.float32}
    with Largest() as largest:
        parts = built(ranks, settings)
        for number in range(4):
            pair = pair_of(ranks, *(replace_dtype(batch(20, number + n, LARGE_ROWS), torch.float32) for n in (0, 1)))
            plan = HorizonPlan(since=1 if number == 2 else None, keep=number == 0, forget=())
            parts.step(pair, step=number, learning_rate=0.01, measure=True, plan=plan)
            parts.worker.poll(step=number)
    return largest.numbers


PER_FEATURE = (37, 11, 3, 37, 7)
"""Rows of each feature's own table."""
COUNTED = {
    "nadamw": CASES["nadamw"],
    "lazy, float32": {"optimizer": {"name": "nadamw", "table": "lazy", "average": "ema"}, "dtype": torch.float32},
    "dcn_v2, a table for each feature": {"optimizer": {"name": "sgd"}, "model": "dcn_v2", "per_feature": True},
    "deepfm, a fraction of weighted rows": {
        "optimizer": {"name": "adamw"}, "model": "deepfm", "weighted": True, "probe_fraction": 0.4,
    },
    "secant": CASES["secant"],
}  # fmt: skip
"""Whose bytes are counted: two of one table, one of five below one another, one of two, and one of two passes."""
PLAIN, MEASURED, MEASURED_FAR = "plain", "measured", "measured far"
"""A step of which nothing is measured, α* is, or α_K of it and of the step before."""


def inputs_counted(case: str, rows: int, seed: int) -> ModelInputs:
    """A batch of a case of COUNTED, whole."""
    whole = replace_dtype(batch(rows, seed, 37), COUNTED[case].get("dtype", torch.float64))
    if "per_feature" not in COUNTED[case]:
        return whole
    return ModelInputs(whole.dense, whole.ids % torch.tensor(PER_FEATURE, dtype=torch.int32).unsqueeze(1), whole.label)


def bytes_of_steps(ranks: Ranks) -> dict[str, Any]:
    """Of each case of COUNTED what this rank sends, by what for, at each kind of step; its tables' widths; how many
    other weights it has."""
    return {case: _bytes_of_steps(ranks, case) for case in COUNTED}


def _bytes_of_steps(ranks: Ranks, case: str) -> dict[str, Any]:
    parts = built(ranks, settings_of("nadamw") | COUNTED[case])
    sent = {}
    kinds = [PLAIN, PLAIN, MEASURED, MEASURED, PLAIN, MEASURED_FAR, MEASURED_FAR]
    for number, kind in enumerate(kinds):  # the first of each kind learns how tables are read
        ranks.sent_bytes.clear()
        pair = pair_of(ranks, inputs_counted(case, 29, number), inputs_counted(case, 31, number + 1))
        far = 4 if kind == MEASURED_FAR else None
        plan = HorizonPlan(since=far, keep=number == 3, forget=())
        parts.step(pair, step=number, learning_rate=0.01, measure=kind == MEASURED, plan=plan)
        parts.worker.poll(step=number)  # of what the step before has measured
        if number in (1, 3, 6):
            sent[kind] = (number, dict(ranks.sent_bytes))
    tables = {name: one.embedding_dim for name, one in sharded_tables(parts.step.model)}
    others = sum(value.numel() for name, value in parts.step.model.named_parameters() if name not in tables)
    return {"sent": sent, "widths": list(tables.values()), "others": others}


def everything(ranks: Ranks) -> dict[str, Any]:
    """All of these, in one set of processes."""
    return {
        "cases": trained_all(ranks),
        "float32": trained_in_float32(ranks),
        "auto": rates_of_auto(ranks),
        "largest": largest_of_a_step(ranks),
        "bytes": bytes_of_steps(ranks),
    }
