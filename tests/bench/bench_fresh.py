"""`auto` on small tasks that are not the suite's, most of them by momentum, against the best of nine tuned cosines.

    python -m tests.bench fresh                      all tasks, those of click logs and text where --data is given
    python -m tests.bench.bench_fresh --tasks unseen --seeds 6 --data ../shared/data

`fitted`: the tasks on which the constants of `auto`'s first steps were chosen, and how often it measures. `few rows`,
`rare labels` and `long`: batches of 1 to 8 rows, 0.6 and 1 % positives, and 10,000 and 20,000 steps, on which how often
it measures was chosen, too. `unseen`: tasks that were written down, and run once, before that; `unseen later`: after
it. What is done on a plateau was chosen on four of these two groups (parity by momentum and by AdamW, the exclusive or
by SGD, two spirals by tanh), nothing on the others. `unseen last`: tasks that were written down, and first run, after
that; two rules, for trained weights and for rows known by heart, were added since.
A regret is of the mean test loss over seeds, each at its best evaluation on validation, as in `study rates`; the best
rate is the one whose validation loss is lowest on average.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from sklearn import datasets

from stepsize.suite import methods
from stepsize.suite.problems import Task, draw
from stepsize.suite.problems.rows import CLASSES, TABLES
from stepsize.suite.training import run

RATES = tuple(10 ** (half / 2) for half in range(-7, 2))
GUESS = 1e-2
NESTEROV = "nesterov"
"""An optimizer that the suite does not have: momentum 0.9 as Nesterov's."""
Rows = tuple[np.ndarray, np.ndarray]


def _two_spirals() -> Rows:
    draws = np.random.default_rng(11)
    turn = np.sqrt(draws.uniform(size=2000)) * 3 * np.pi
    side = draws.integers(2, size=2000)
    angle = turn + np.pi * side
    return np.stack([turn * np.cos(angle), turn * np.sin(angle)], 1) + 0.4 * draws.normal(size=(2000, 2)), side


def _parity() -> Rows:
    draws = np.random.default_rng(12)
    features = draws.normal(size=(4000, 10))
    return features, (features[:, :3] > 0).sum(1) % 2


def _products() -> Rows:
    draws = np.random.default_rng(13)
    features = draws.normal(size=(4000, 12))
    wanted = features[:, 0] * features[:, 1] + np.sin(2 * features[:, 2]) + 0.5 * np.abs(features[:, 3])
    return features, wanted + 0.2 * draws.normal(size=4000)


def _heavy_tails() -> Rows:
    draws = np.random.default_rng(14)
    features = draws.standard_t(3, size=(4000, 16))
    return features, features @ draws.normal(size=16) + draws.standard_t(3, size=4000)


def _classification(classes: int, features: int, seed: int, apart: float = 1.0) -> Any:
    return datasets.make_classification(
        4000, features, n_informative=12, n_classes=classes, class_sep=apart, random_state=seed
    )


def _hastie() -> Rows:
    features, signs = datasets.make_hastie_10_2(5000, random_state=20)
    return features, (signs > 0).astype(int)


def _sines() -> Rows:
    draws = np.random.default_rng(21)
    features = draws.uniform(-2, 2, size=(4000, 4))
    return features, np.sin(3 * features[:, 0]) * features[:, 1] + np.cos(features[:, 2]) + 0.1 * draws.normal(
        size=4000
    )


def _exclusive_or() -> Rows:
    draws = np.random.default_rng(22)
    features = draws.normal(size=(4000, 6))
    return features, (features[:, 0] * features[:, 1] > 0).astype(int)


def _mostly_noise() -> Rows:
    draws = np.random.default_rng(23)
    features = draws.normal(size=(6000, 20))
    return features, features @ draws.normal(size=20) + 20 * draws.normal(size=6000)


def _rare_labels(share: float, seed: int) -> Any:
    return datasets.make_classification(
        60_000, 30, n_informative=10, class_sep=1.0, flip_y=0.003, weights=[1 - share], random_state=seed
    )


def _checkerboard() -> Rows:
    draws = np.random.default_rng(41)
    features = draws.uniform(-2, 2, size=(5000, 2))
    return features, np.floor(features).sum(1).astype(int) % 2


def _staircase() -> Rows:
    draws = np.random.default_rng(42)
    features = draws.normal(size=(5000, 12))
    signs = np.sign(features[:, :3]).cumprod(1)
    return features, signs.sum(1) + 0.2 * draws.normal(size=5000)


def _modular_sums() -> Rows:
    draws = np.random.default_rng(43)
    both = draws.integers(11, size=(5000, 2))
    return np.eye(11)[both].reshape(5000, 22), both.sum(1) % 11


def _tree() -> Rows:
    draws = np.random.default_rng(44)
    features = draws.normal(size=(5000, 10))
    cuts, leaves, place = draws.normal(scale=0.5, size=31), draws.integers(3, size=16), np.zeros(5000, int)
    for depth in range(4):
        place = 2 * place + 1 + (features[:, depth] > cuts[place])
    return features, leaves[place - 15]


def _weak_signal() -> Rows:
    draws = np.random.default_rng(45)
    features = draws.normal(size=(8000, 15))
    logits = features @ draws.normal(size=15) * 0.1
    return features, (draws.uniform(size=8000) < 1 / (1 + np.exp(-logits))).astype(int)


def _unlike_scales() -> Rows:
    draws = np.random.default_rng(46)
    features = draws.normal(size=(5000, 20)) @ np.linalg.qr(draws.normal(size=(20, 20)))[0]
    mixed = features * np.geomspace(1, 0.03, 20) @ np.linalg.qr(draws.normal(size=(20, 20)))[0]
    return mixed, (features @ draws.normal(size=20) + draws.normal(size=5000) > 0).astype(int)


def _drawn_clicks() -> Rows:
    draws = np.random.default_rng(5)
    features = draws.normal(size=(700_000, 20)).astype(np.float32)
    logits = features @ draws.normal(size=20) * 1.2 - 6.5
    return features, (draws.uniform(size=len(logits)) < 1 / (1 + np.exp(-logits))).astype(int)


SOURCES: dict[str, tuple[Callable[[], Any], int | None]] = {
    "breast cancer": (partial(datasets.load_breast_cancer, return_X_y=True), 2),
    "wine": (partial(datasets.load_wine, return_X_y=True), 3),
    "iris": (partial(datasets.load_iris, return_X_y=True), 3),
    "moons": (partial(datasets.make_moons, 2000, noise=0.15, random_state=3), 2),
    "circles": (partial(datasets.make_circles, 2000, noise=0.1, factor=0.5, random_state=3), 2),
    "blobs": (partial(datasets.make_blobs, 1500, 10, centers=6, cluster_std=3.0, random_state=4), 6),
    "classification": (partial(_classification, 4, 30, 5), 4),
    "swiss roll": (partial(datasets.make_swiss_roll, 3000, noise=0.3, random_state=6), None),
    "quantiles": (
        partial(datasets.make_gaussian_quantiles, n_samples=3000, n_features=8, n_classes=4, random_state=7),
        4,
    ),
    "uncorrelated": (partial(datasets.make_sparse_uncorrelated, 3000, 15, random_state=8), None),
    "two spirals": (_two_spirals, 2),
    "parity": (_parity, 2),
    "products": (_products, None),
    "heavy tails": (_heavy_tails, None),
    "ten classes": (partial(_classification, 10, 40, 15, 1.5), 10),
    "s curve": (partial(datasets.make_s_curve, 3000, noise=0.2, random_state=16), None),
    "linear": (partial(datasets.make_regression, 3000, 25, n_informative=8, noise=20.0, random_state=17), None),
    "hastie": (_hastie, 2),
    "sines": (_sines, None),
    "exclusive or": (_exclusive_or, 2),
    "mostly noise": (_mostly_noise, None),
    "flipped labels": (
        partial(datasets.make_classification, 5000, 20, n_informative=8, flip_y=0.6, random_state=24),
        2,
    ),
    "rarer labels": (partial(_rare_labels, 0.004, 31), 2),
    "rare labels": (partial(_rare_labels, 0.01, 32), 2),
    "drawn clicks": (_drawn_clicks, 2),
    "checkerboard": (_checkerboard, 2),
    "staircase": (_staircase, None),
    "modular sums": (_modular_sums, 11),
    "tree": (_tree, 3),
    "weak signal": (_weak_signal, 2),
    "unlike scales": (_unlike_scales, 2),
    "many blobs": (partial(datasets.make_blobs, 4000, 2, centers=12, cluster_std=1.2, random_state=47), 12),
}
"""What makes the rows, and how many classes; None where the targets are numbers."""


class Size(NamedTuple):
    """How much is trained on, and how."""

    rows: int
    held: int
    batch: int
    epochs: int


def _task(name: str, source: str, size: Size, optimizer: str, **particulars: Any) -> tuple[str, Task]:
    about = {"title": name, "apart": "", "split": "random", **particulars, **size._asdict()}
    return name, Task(name=name, source=source, optimizer=optimizer, **about)  # pyright: ignore[reportArgumentType]


def _table(
    name: str, source: str, size: Size, optimizer: str, *hidden: int, activation: str = "relu"
) -> tuple[str, Task]:
    shape = {"hidden": hidden, "activation": activation} if hidden else {}
    model, group = "mlp" if hidden else "logistic", "classification and regression"
    return _task(name, source, size, optimizer, group=group, model=model, shape=shape)


def _log(name: str, source: str, size: Size, optimizer: str, table: int = 16_384) -> tuple[str, Task]:
    shape = {"table": table, "embedding": 4, "hidden": (32,)}
    return _task(name, source, size, optimizer, group="click logs", model="mlp", shape=shape)


def _text(name: str, optimizer: str, batch: int) -> tuple[str, Task]:
    shape = {"window": 32, "width": 32, "blocks": 1, "heads": 2}
    size = Size(rows=4000, held=300, batch=batch, epochs=1)
    return _task(name, "shakespeare", size, optimizer, group="text", split="time", model="transformer", shape=shape)


CANCER, CLASSIFIED, DIGITS = Size(320, 120, 16, 20), Size(2400, 800, 40, 3), Size(1000, 390, 50, 5)
RARE = Size(48_000, 6000, 256, 1)
TASKS: Mapping[str, Mapping[str, Task]] = {
    "fitted": dict(
        [
            _table("breast cancer, Nesterov", "breast cancer", CANCER, NESTEROV, 32),
            _table("breast cancer, momentum, two layers", "breast cancer", Size(320, 120, 32, 40), "momentum", 64, 32),
            _table("breast cancer, Nesterov, logistic", "breast cancer", CANCER, NESTEROV),
            _table("breast cancer, SGD", "breast cancer", CANCER, "sgd", 32),
            _table("breast cancer, AdamW", "breast cancer", CANCER, "adamw", 32),
            _table("wine, momentum", "wine", Size(100, 39, 10, 30), "momentum", 32),
            _table("iris, Nesterov", "iris", Size(90, 30, 15, 40), NESTEROV, 32, activation="tanh"),
            _table("moons, momentum", "moons", Size(1000, 500, 32, 10), "momentum", 32),
            _table("circles, Nesterov", "circles", Size(1000, 500, 50, 10), NESTEROV, 24, 24),
            _table("blobs, momentum", "blobs", Size(800, 350, 40, 5), "momentum", 32),
            _table("classification, momentum", "classification", CLASSIFIED, "momentum", 64),
            _table("classification, momentum, short", "classification", Size(2400, 800, 120, 3), "momentum", 64),
            _table("classification, AdamW", "classification", CLASSIFIED, "adamw", 64),
            _table("swiss roll, momentum", "swiss roll", Size(2000, 500, 50, 5), "momentum", 48, 48, activation="tanh"),
            _table("swiss roll, NAdamW", "swiss roll", Size(2000, 500, 50, 10), "nadamw", 48, 48, activation="tanh"),
            _table("quantiles, Nesterov, short", "quantiles", Size(2000, 500, 100, 3), NESTEROV, 48),
            _table("quantiles, momentum", "quantiles", Size(2000, 500, 32, 20), "momentum", 48),
            _table("quantiles, SGD", "quantiles", Size(2000, 500, 32, 5), "sgd", 48),
            _table("uncorrelated, momentum", "uncorrelated", Size(2000, 500, 32, 4), "momentum", 32),
            _table("Friedman 3, momentum, short", "friedman3", Size(3000, 1000, 150, 3), "momentum", 32),
            _table("digits, Nesterov", "digits", DIGITS, NESTEROV, 64),
            _table("digits, momentum, two layers", "digits", Size(1000, 390, 20, 12), "momentum", 64, 64),
            _table("digits, SGD", "digits", Size(1000, 390, 50, 10), "sgd", 64),
            _log("Frappe, momentum", "frappe", Size(40_000, 4000, 256, 1), "momentum"),
            _log("Frappe, AdamW", "frappe", Size(40_000, 4000, 128, 1), "adamw"),
            _log("MovieLens, Nesterov", "movielens", Size(20_000, 4000, 64, 1), NESTEROV),
            _log("flights, SGD", "flights", Size(40_000, 4000, 128, 1), "sgd", 4096),
            _text("text, momentum", "momentum", 20),
            _text("text, NAdamW", "nadamw", 20),
        ]
    ),
    "few rows": dict(
        [
            _table("classification, SGD, 4 rows", "classification", Size(2400, 800, 4, 1), "sgd", 32),
            _table("quantiles, AdamW, 1 row", "quantiles", Size(2000, 500, 1, 1), "adamw", 32),
            _table("classification, momentum, 8 rows", "classification", Size(2400, 800, 8, 2), "momentum", 32),
            _table("moons, momentum, 2 rows", "moons", Size(1000, 500, 2, 1), "momentum", 32),
            _table("digits, NAdamW, 8 rows", "digits", Size(1000, 390, 8, 3), "nadamw", 32),
        ]
    ),
    "rare labels": dict(
        [
            _table("0.6 % positives, AdamW", "rarer labels", RARE, "adamw", 64),
            _table("0.6 % positives, momentum", "rarer labels", RARE, "momentum", 64),
            _table("1 % positives, NAdamW", "rare labels", RARE._replace(batch=128), "nadamw", 64, 32),
            _table("1 % positives, SGD", "rare labels", RARE, "sgd", 64),
            _table("1 % positives, AdamW, logistic", "rare labels", RARE, "adamw"),
        ]
    ),
    "long": dict(
        [
            _table("drawn clicks, momentum, logistic", "drawn clicks", Size(640_000, 20_000, 32, 1), "momentum"),
            _table("drawn clicks, AdamW", "drawn clicks", Size(640_000, 20_000, 64, 1), "adamw", 16),
        ]
    ),
    "unseen": dict(
        [
            _table("two spirals, momentum", "two spirals", Size(1200, 400, 40, 15), "momentum", 48, 48),
            _table(
                "two spirals, Nesterov, tanh", "two spirals", Size(1200, 400, 24, 8), NESTEROV, 64, activation="tanh"
            ),
            _table("parity, momentum", "parity", Size(2400, 800, 48, 8), "momentum", 64),
            _table("parity, AdamW", "parity", Size(2400, 800, 48, 8), "adamw", 64),
            _table("products, momentum", "products", Size(2400, 800, 32, 4), "momentum", 64, 32),
            _table("products, Nesterov, short", "products", Size(2400, 800, 96, 3), NESTEROV, 48),
            _table("heavy tails, momentum", "heavy tails", Size(2400, 800, 32, 3), "momentum", 32),
            _table("ten classes, Nesterov", "ten classes", Size(2400, 800, 32, 6), NESTEROV, 96),
            _table("ten classes, SGD", "ten classes", Size(2400, 800, 32, 6), "sgd", 96),
            _table("s curve, momentum", "s curve", Size(2000, 500, 25, 3), "momentum", 32, activation="tanh"),
            _table("linear, Nesterov, logistic", "linear", Size(2000, 500, 40, 4), NESTEROV),
            _table("breast cancer, momentum, 5 epochs", "breast cancer", Size(320, 120, 16, 5), "momentum", 24, 24),
            _table("wine, NAdamW", "wine", Size(100, 39, 20, 40), "nadamw", 24, activation="tanh"),
            _table("digits, momentum, tanh", "digits", Size(1000, 390, 32, 8), "momentum", 48, 48, activation="tanh"),
            _log("Criteo Kaggle, momentum", "criteo-kaggle", Size(40_000, 4000, 200, 1), "momentum"),
            _log("Criteo Kaggle, Nesterov, two epochs", "criteo-kaggle", Size(16_000, 4000, 64, 2), NESTEROV),
            _log("Criteo 1TB, momentum", "criteo-1tb", Size(6000, 1500, 32, 2), "momentum"),
            _text("text, Nesterov", NESTEROV, 32),
        ]
    ),
    "unseen later": dict(
        [
            _table("Hastie, momentum", "hastie", Size(3200, 900, 32, 4), "momentum", 64),
            _table("Hastie, AdamW", "hastie", Size(3200, 900, 64, 8), "adamw", 48, 48),
            _table("Hastie, SGD", "hastie", Size(3200, 900, 20, 3), "sgd", 64),
            _table("sines, Nesterov, tanh", "sines", Size(2600, 700, 26, 6), NESTEROV, 64, activation="tanh"),
            _table("sines, NAdamW", "sines", Size(2600, 700, 40, 10), "nadamw", 64, 32),
            _table("exclusive or, momentum", "exclusive or", Size(2600, 700, 40, 4), "momentum", 32),
            _table("exclusive or, SGD", "exclusive or", Size(2600, 700, 26, 6), "sgd", 32, activation="tanh"),
            _table("mostly noise, momentum", "mostly noise", Size(4000, 1000, 25, 2), "momentum", 32),
            _table("flipped labels, AdamW", "flipped labels", Size(3600, 700, 48, 5), "adamw", 64),
            _table("flipped labels, Nesterov", "flipped labels", Size(3600, 700, 48, 3), NESTEROV, 64, 32),
            _log("Frappe, NAdamW, two epochs", "frappe", Size(24_000, 4000, 64, 2), "nadamw"),
            _log("MovieLens, SGD", "movielens", Size(24_000, 4000, 48, 1), "sgd"),
            _log("flights, momentum", "flights", Size(30_000, 4000, 100, 1), "momentum", 4096),
            _text("text, AdamW", "adamw", 10),
        ]
    ),
    "unseen last": dict(
        [
            _table("checkerboard, momentum", "checkerboard", Size(3200, 900, 40, 6), "momentum", 64),
            _table("checkerboard, AdamW", "checkerboard", Size(3200, 900, 40, 6), "adamw", 48, 48),
            _table("staircase, SGD", "staircase", Size(3200, 900, 32, 5), "sgd", 64),
            _table("staircase, Nesterov", "staircase", Size(3200, 900, 32, 5), NESTEROV, 48, activation="tanh"),
            _table("modular sums, AdamW", "modular sums", Size(3200, 900, 32, 6), "adamw", 64),
            _table("modular sums, momentum", "modular sums", Size(3200, 900, 32, 6), "momentum", 64),
            _table("tree, NAdamW", "tree", Size(3200, 900, 50, 6), "nadamw", 48, 32),
            _table("tree, SGD", "tree", Size(3200, 900, 25, 4), "sgd", 64),
            _table("weak signal, AdamW", "weak signal", Size(6000, 1000, 50, 3), "adamw", 32),
            _table("weak signal, momentum", "weak signal", Size(6000, 1000, 30, 2), "momentum", 48),
            _table("weak signal, SGD, logistic", "weak signal", Size(6000, 1000, 30, 2), "sgd"),
            _table("unlike scales, momentum", "unlike scales", Size(3200, 900, 40, 5), "momentum", 48),
            _table("unlike scales, AdamW, logistic", "unlike scales", Size(3200, 900, 40, 5), "adamw"),
            _table("many blobs, Nesterov", "many blobs", Size(2600, 700, 40, 6), NESTEROV, 48),
            _table("many blobs, SGD", "many blobs", Size(2600, 700, 26, 4), "sgd", 48, activation="tanh"),
            _table("Friedman 1, AdamW", "friedman1", Size(3000, 1000, 40, 6), "adamw", 48),
            _table("Friedman 2, Nesterov", "friedman2", Size(3000, 1000, 30, 4), NESTEROV, 32, 32),
            _table("Friedman 3, NAdamW", "friedman3", Size(3000, 1000, 50, 8), "nadamw", 48),
            _table("digits, NAdamW, tanh", "digits", Size(1000, 390, 25, 10), "nadamw", 64, activation="tanh"),
            _table("digits, Nesterov, logistic", "digits", Size(1000, 390, 20, 6), NESTEROV),
            _log("Criteo Kaggle, SGD", "criteo-kaggle", Size(32_000, 4000, 80, 1), "sgd"),
            _log("MovieLens, NAdamW, three epochs", "movielens", Size(12_000, 4000, 60, 3), "nadamw"),
        ]
    ),
}


class Asked(NamedTuple):
    """One run."""

    task: Task
    method: str
    rate: float
    seed: int


def losses(folder: Path | None, asked: Asked) -> tuple[float, float]:
    """Lowest loss on validation, and the loss on test of those weights; inf where none is finite."""
    torch.set_num_threads(1)
    whole = methods.make_optimizer

    def make(name: str, parameters: Iterable[torch.Tensor], rate: float) -> torch.optim.Optimizer:
        if name == NESTEROV:
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True)
        return whole(name, parameters, rate)  # pyright: ignore[reportArgumentType]

    tables = {name: rows for name, (rows, _) in SOURCES.items()}
    classes = {name: count for name, (_, count) in SOURCES.items() if count is not None}
    with patch.dict(TABLES, tables), patch.dict(CLASSES, classes), patch.object(methods, "make_optimizer", make):
        record = run(draw(asked.task, asked.seed, folder), methods.METHODS[asked.method], asked.rate)
    best = [one for one in record["evaluations"] if one["test"] is not None]
    if not best:
        return math.inf, math.inf
    return min(loss for loss in best[-1]["validation"].values() if loss is not None), best[-1]["test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", choices=list(TASKS), nargs="+", default=list(TASKS), help="default: all")
    parser.add_argument("--seeds", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="folder of the click logs and the text; without, those are left out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; default: %(default)s")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for group in arguments.tasks:
            print(f"\n| {group} | tuned rate | test loss | `auto`, % above | by seed |\n|---|---|---|---|---|")
            regrets = []
            for name, task in TASKS[group].items():
                if task.group != "classification and regression" and arguments.data is None:
                    continue
                seeds = range(arguments.seeds)
                every = [("cosine", rate) for rate in RATES] + [("auto", GUESS)]
                asked = [Asked(task, method, rate, seed) for method, rate in every for seed in seeds]
                found = list(pool.map(partial(losses, arguments.data), asked))
                by = {one: found[number * len(seeds) : (number + 1) * len(seeds)] for number, one in enumerate(every)}
                tuned = min(every[:-1], key=lambda one: statistics.fmean(loss for loss, _ in by[one]))
                before, after = ([test for _, test in by[one]] for one in (tuned, every[-1]))
                regrets.append(statistics.fmean(after) / statistics.fmean(before) - 1)
                each = " ".join(f"{100 * (new / old - 1):+.0f}" for new, old in zip(after, before, strict=True))
                cells = [f"{name}, {task.steps} steps", f"{tuned[1]:.3g}", f"{statistics.fmean(before):.4f}"]
                print(f"| {' | '.join(cells)} | {100 * regrets[-1]:+.1f} | {each} |", flush=True)
            whole = statistics.fmean(regrets), statistics.median(regrets), max(regrets)
            print(f"| mean; median; worst | | | {'; '.join(f'{100 * regret:+.1f}' for regret in whole)} | |")


if __name__ == "__main__":
    main()
