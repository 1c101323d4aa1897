"""A task: which rows, which model, which optimizer, how long; drawn with a seed it is a problem to be trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stepsize.suite.problems.models import (
    CharacterGRU,
    CharacterTransformer,
    ClickMLP,
    LogisticRegression,
    SmallConvolution,
    SmallDLRM,
    layers,
)
from stepsize.suite.problems.rows import (
    CLASSES,
    ON_ONE_SCALE,
    TABLES,
    Examples,
    SuiteError,
    click_examples,
    numeric_examples,
    places_at_random,
    places_in_time,
    read_click_log,
    text_examples,
    thin_positives,
)

TaskGroup = Literal["click logs", "classification and regression", "text"]
OptimizerName = Literal["sgd", "momentum", "adamw", "nadamw"]
HELD_OUT_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained; nothing in it depends on a seed."""

    name: str
    group: TaskGroup
    title: str
    """One line for people."""
    apart: str
    """How it differs from the tasks that the constants of `auto` were chosen on; or that it is one of them."""
    source: str
    """Whose rows; a key of `rows.FILES` or `rows.TABLES`."""
    rows: int
    """Training rows, or windows of text."""
    held: int
    """Rows of validation, and as many of test."""
    split: Literal["time", "random"]
    """Whether validation and test lie after what is trained on. Text always does."""
    model: Literal["logistic", "mlp", "dlrm", "convolution", "transformer", "gru"]
    shape: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the model."""
    optimizer: OptimizerName
    batch: int
    epochs: int = 1
    positives: float | None = None
    """Share of positives that is left, where others are dropped."""
    fitted: bool = False
    """Whether constants of `auto` were chosen on it. Such tasks are shown apart and are in no mean."""

    @property
    def steps(self) -> int:
        """Whole batches in all epochs."""
        return self.rows * self.epochs // self.batch


class Batches:
    """The training rows in batches: every epoch a permutation of its own, one after another.

    A share of the rows may be kept back, to be probed on and never trained on; epochs then have the fewer rows and
    the run as many steps as ever.
    """

    def __init__(self, train: Examples, *, batch: int, steps: int, seed: int, held_out: float = 0.0) -> None:
        """`held_out` is the share of the rows that is kept back; which rows does not depend on `seed`."""
        self.train, self.batch, self.steps = train, batch, steps
        shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(HELD_OUT_SEED))
        kept_back = round(held_out * len(train))
        self.held_out_rows, trained = shuffled[:kept_back], shuffled[kept_back:].sort().values
        draws = torch.Generator().manual_seed(1_000 + seed)
        order: list[Tensor] = []
        while sum(map(len, order)) < (steps + 1) * batch:  # one more, to probe the last step
            order.append(trained[torch.randperm(len(trained), generator=draws)])
        self.order = torch.cat(order)
        self._draws = torch.Generator().manual_seed(2_000 + seed)

    def at(self, step: int) -> Examples:
        """The batch of `step`, from 0 to `steps`; the last of them is for probing."""
        return self.train.take(self.order[step * self.batch : (step + 1) * self.batch])

    def held_out_batch(self) -> Examples:
        """As many of the rows kept back, drawn anew.

        Raises: SuiteError where no rows are.
        """
        if len(self.held_out_rows) == 0:
            raise SuiteError("held_out_batch: no rows are kept back; give held_out a share")
        places = torch.randint(len(self.held_out_rows), (self.batch,), generator=self._draws)
        return self.train.take(self.held_out_rows[places])


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A task drawn with a seed: initial weights and the order of the rows are the seed's.

    So is the split of the small sets (classification and regression), whose few test rows would else be all that a
    study knows; the logs and the text are split in one way.
    """

    task: Task
    seed: int
    model: nn.Module
    loss: nn.Module
    train: Examples
    validation: Examples
    test: Examples

    @property
    def steps(self) -> int:
        """Steps of a run."""
        return self.task.steps

    def batches(self, *, held_out: float = 0.0) -> Batches:
        """The training rows in the seed's order."""
        return Batches(self.train, batch=self.task.batch, steps=self.task.steps, seed=self.seed, held_out=held_out)


def draw(task: Task, seed: int, folder: Path | None = None) -> Problem:
    """The problem of `task` and `seed`, its rows read from `folder`.

    Raises: SuiteError where scikit-learn is wanted and not installed, or a file is not as expected; OSError where one
    is not there.
    """
    if task.group == "click logs":
        assert folder is not None
        log = read_click_log(task.source, folder)
        if task.positives is not None:
            log = thin_positives(log, task.positives)
        places = places_in_time if task.split == "time" else places_at_random
        table = task.shape["table"]
        parts = click_examples(log, places(len(log.labels), task.rows, task.held), table)
        dense, categories = (values.shape[1] for values in parts[0].inputs)
        make, loss = _click_model(task, dense, categories), nn.BCEWithLogitsLoss()
    elif task.group == "text":
        assert folder is not None
        *parts, characters = text_examples(folder, task.shape["window"], task.rows, task.held)
        make, loss = _text_model(task, characters), nn.CrossEntropyLoss()
    else:
        features, targets = TABLES[task.source]()
        classes = CLASSES.get(task.source)
        places = places_at_random(len(features), task.rows, task.held, seed=seed)
        one_by_one = task.source not in ON_ONE_SCALE
        parts = numeric_examples(features, targets, places, classes=classes is not None, standardize=one_by_one)
        make = _table_model(task, features.shape[1], classes)
        loss = nn.MSELoss() if classes is None else nn.CrossEntropyLoss()
    train, validation, test = parts
    short = [len(part) for part in parts] != [task.rows, task.held, task.held]
    if short:
        raise SuiteError(f"{task.name}: {task.source} has {[len(part) for part in parts]} rows; other ones than known?")
    torch.manual_seed(seed)
    return Problem(task=task, seed=seed, model=make(), loss=loss, train=train, validation=validation, test=test)


def _click_model(task: Task, dense: int, categories: int) -> Callable[[], nn.Module]:
    shape = task.shape
    if task.model == "logistic":
        return lambda: LogisticRegression(dense=dense, table=shape["table"])
    sizes = {"dense": dense, "categories": categories, **shape}
    return lambda: ClickMLP(**sizes) if task.model == "mlp" else SmallDLRM(**sizes)


def _text_model(task: Task, characters: int) -> Callable[[], nn.Module]:
    if task.model == "gru":
        return lambda: CharacterGRU(characters=characters, width=task.shape["width"])
    return lambda: CharacterTransformer(characters=characters, **task.shape)


def _table_model(task: Task, features: int, classes: int | None) -> Callable[[], nn.Module]:
    if task.model == "convolution":
        assert classes is not None
        side = round(features**0.5)
        return lambda: SmallConvolution(side=side, channels=task.shape["channels"], classes=classes)
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[task.shape.get("activation", "relu")]
    hidden = () if task.model == "logistic" else task.shape["hidden"]
    widths = [features, *hidden, classes or 1]
    return lambda: layers(widths, activation) if classes else layers(widths, activation).append(nn.Flatten(0))
