"""Where the rows of a task come from: click logs and a text in a folder, scikit-learn's own sets, generated rows."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

EXTRA = "'alphastream[suite]' or 'stepsize[suite]'"
"""What brings all that the suite needs: with the whole project, or with the wheel of this package alone."""
SPLIT_SEED = 20_261
"""Of splits and generated rows."""
CRITEO_INTEGERS, CRITEO_CATEGORIES = 13, 26


class SuiteError(ValueError):
    """What a study of rates cannot do, and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Some rows: what a model takes, one tensor an argument, and what its loss takes."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.targets)

    def take(self, rows: Tensor | slice) -> Examples:
        """The rows at these places, in this order."""
        return Examples(inputs=tuple(values[rows] for values in self.inputs), targets=self.targets[rows])


@dataclass(frozen=True, kw_only=True)
class ClickLog:
    """A log as numbers. `ids` are checksums of the categories' tokens, to be taken modulo a table's rows."""

    labels: np.ndarray
    """(R,) float32, 0 or 1."""
    dense: np.ndarray
    """(R, D) float32, not standardized; D may be 0."""
    ids: np.ndarray
    """(R, S) uint32."""

    def at(self, rows: np.ndarray) -> ClickLog:
        """The rows at these places."""
        return ClickLog(labels=self.labels[rows], dense=self.dense[rows], ids=self.ids[rows])


@dataclass(frozen=True, kw_only=True)
class Places:
    """Which rows of a set are trained on, chosen on and reported on; no row is in two of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def places_in_time(rows: int, train: int, held: int) -> Places:
    """The last 2·`held` rows, in turn validation's and test's; of those before, `train` at even distances."""
    later = np.arange(rows - 2 * held, rows)
    return Places(train=_evenly(rows - 2 * held, train), validation=later[0::2], test=later[1::2])


def places_at_random(rows: int, train: int, held: int, *, seed: int = 0) -> Places:
    """`train` and twice `held` rows of a permutation, which is `seed`'s."""
    order = np.random.default_rng(SPLIT_SEED + seed).permutation(rows)
    return Places(train=order[2 * held : 2 * held + train], validation=order[:held], test=order[held : 2 * held])


def _evenly(rows: int, wanted: int) -> np.ndarray:
    return np.arange(wanted) * rows // wanted


FILES = {
    "criteo-kaggle": "criteo_kaggle_137139.tsv.gz",
    "criteo-1tb": "criteo_1tb_day0_10000.tsv.gz",
    "movielens": "movielens.csv.gz",
    "frappe": "frappe.csv.gz",
    "flights": "nycflights.csv.gz",
    "shakespeare": "tinyshakespeare.txt",
}
"""The file in the data folder that a source reads; other sources read none."""
DENSE_COLUMNS = {"movielens": 1, "frappe": 0, "flights": 3}
"""How many columns after the label are numbers, in the comma-separated logs."""


def missing_file(source: str, folder: Path | None) -> str | None:
    """Why the rows of `source` cannot be read from `folder`, or None if they can."""
    if source not in FILES:
        return None
    if folder is None:
        return f"reads {FILES[source]}, and no folder of data was given"
    return None if (folder / FILES[source]).is_file() else f"{folder / FILES[source]} is not there"


@lru_cache(maxsize=4)
def read_click_log(source: str, folder: Path) -> ClickLog:
    """All rows of a log, in its order.

    A missing integer is 0, Criteo's integers become ln(1 + max(x, 0)); a category becomes the CRC-32 of its token,
    begun with its column's number, so that equal tokens of two columns differ. A missing one is a token, too.
    """
    lines = _criteo_lines if source.startswith("criteo") else _csv_lines
    labels, dense, ids = [], [], []
    for label, numbers, tokens in lines(source, folder / FILES[source]):
        labels.append(label == "1")
        dense.append([float(number or 0) if number != "NA" else 0.0 for number in numbers])
        ids.append([zlib.crc32(token.encode(), column) for column, token in enumerate(tokens)])
    numbers = np.array(dense, dtype=np.float32).reshape(len(labels), -1)
    if source.startswith("criteo"):
        numbers = np.log1p(np.maximum(numbers, 0))
    return ClickLog(labels=np.array(labels, dtype=np.float32), dense=numbers, ids=np.array(ids, dtype=np.uint32))


def _criteo_lines(_: str, path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            cells = line.rstrip("\n").split("\t")
            if len(cells) != 1 + CRITEO_INTEGERS + CRITEO_CATEGORIES:
                raise SuiteError(f"{path}:{number}: {len(cells)} columns where a line of Criteo's has 40")
            yield cells[0], cells[1 : 1 + CRITEO_INTEGERS], cells[1 + CRITEO_INTEGERS :]


def _csv_lines(source: str, path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    dense = DENSE_COLUMNS[source]
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        table = csv.reader(lines)
        columns = len(next(table, []))
        for number, cells in enumerate(table, start=2):
            if len(cells) != columns:
                raise SuiteError(f"{path}:{number}: {len(cells)} columns where the header has {columns}")
            yield cells[0], cells[1 : 1 + dense], cells[1 + dense :]


def thin_positives(log: ClickLog, share: float) -> ClickLog:
    """All negatives and, at even distances, as many positives as make `share` of the rows."""
    positive = np.flatnonzero(log.labels > 0)
    negatives = len(log.labels) - len(positive)
    kept = round(negatives * share / (1 - share))
    if kept > len(positive):
        raise SuiteError(f"{len(positive)} positives do not make {share:.2%} of {negatives} negatives and themselves")
    keep = np.concatenate([np.flatnonzero(log.labels == 0), positive[_evenly(len(positive), kept)]])
    return log.at(np.sort(keep))


def click_examples(log: ClickLog, places: Places, table: int) -> tuple[Examples, Examples, Examples]:
    """Train, validation and test; numbers standardized by the training rows, categories modulo `table` rows."""
    trained = log.dense[places.train]
    middle, scale = trained.mean(0), trained.std(0) + 1e-6

    def part(rows: np.ndarray) -> Examples:
        dense = torch.from_numpy(((log.dense[rows] - middle) / scale).astype(np.float32))
        ids = torch.from_numpy((log.ids[rows] % np.uint32(table)).astype(np.int64))
        return Examples(inputs=(dense, ids), targets=torch.from_numpy(log.labels[rows]))

    return part(places.train), part(places.validation), part(places.test)


def numeric_examples(
    features: np.ndarray, targets: np.ndarray, places: Places, *, classes: bool, standardize: bool
) -> tuple[Examples, Examples, Examples]:
    """Train, validation and test; targets that are no classes, and features if asked, standardized by training rows."""

    def by_training(values: np.ndarray) -> Tensor:
        trained = values[places.train]
        return torch.from_numpy(((values - trained.mean(0)) / trained.std(0)).astype(np.float32))

    inputs = by_training(features) if standardize else torch.from_numpy(features.astype(np.float32))
    wanted = torch.from_numpy(targets.astype(np.int64)) if classes else by_training(targets)

    def part(rows: np.ndarray) -> Examples:
        return Examples(inputs=(inputs[rows],), targets=wanted[rows])

    return part(places.train), part(places.validation), part(places.test)


def text_examples(folder: Path, window: int, train: int, held: int) -> tuple[Examples, Examples, Examples, int]:
    """Windows of `window` characters and the ones that follow each, and how many different characters there are.

    The first nine tenths of the text are trained on, `train` windows at even distances; the last tenth is cut in two
    halves. No character is in windows of two splits.
    """
    text = (folder / FILES["shakespeare"]).read_text(encoding="utf-8")
    known = sorted(set(text))
    numbers = {character: number for number, character in enumerate(known)}
    codes = torch.tensor([numbers[character] for character in text])
    cuts = [0, len(codes) * 9 // 10, len(codes) * 19 // 20, len(codes)]

    def part(number: int, wanted: int) -> Examples:
        codes_here = codes[cuts[number] : cuts[number + 1]]
        windows = (len(codes_here) - 1) // window
        whole = codes_here[: windows * window].view(windows, window)
        following = codes_here[1 : windows * window + 1].view(windows, window)
        rows = torch.from_numpy(_evenly(windows, min(wanted, windows)))
        return Examples(inputs=(whole[rows],), targets=following[rows])

    return part(0, train), part(1, held), part(2, held), len(known)


def sklearn_datasets() -> ModuleType:
    """Scikit-learn's data sets.

    Raises: SuiteError where scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise SuiteError(f"digits, diabetes and Friedman's sets come with scikit-learn; pip install {EXTRA}") from None
    return datasets


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 digits of 8 × 8 pixels, all on one scale, and their classes.

    Some pixels are dark in nearly all digits: each on a scale of its own, one lit pixel would be worth a thousand.
    """
    pixels, classes = sklearn_datasets().load_digits(return_X_y=True)
    return pixels / pixels.std(), classes


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """442 patients, ten features, the progression of their disease."""
    return sklearn_datasets().load_diabetes(return_X_y=True)


def friedman(number: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """5,000 rows of Friedman's first, second or third function, with noise of about a third of its spread."""
    noise = {1: 1.0, 2: 125.0, 3: 0.1}[number]

    def make() -> tuple[np.ndarray, np.ndarray]:
        return getattr(sklearn_datasets(), f"make_friedman{number}")(5000, noise=noise, random_state=SPLIT_SEED)

    return make


def teacher() -> tuple[np.ndarray, np.ndarray]:
    """8,000 rows of 30 features and one of 8 classes drawn from the softmax of a random two-layer network."""
    draws = np.random.default_rng(SPLIT_SEED)
    features = draws.normal(size=(8000, 30))
    hidden = np.tanh(features @ draws.normal(size=(30, 20)) / np.sqrt(30) * 2)
    scores = hidden @ draws.normal(size=(20, 8)) * 1.5
    return features, (scores + draws.gumbel(size=scores.shape)).argmax(1)


TABLES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "digits": digits,
    "diabetes": diabetes,
    "friedman1": friedman(1),
    "friedman2": friedman(2),
    "friedman3": friedman(3),
    "teacher": teacher,
}
"""Features and targets of what needs no file."""
CLASSES = {"digits": 10, "teacher": 8}
"""How many classes the targets have; those of other sources are numbers."""
ON_ONE_SCALE = frozenset({"digits"})
"""Sources whose features are not standardized one by one."""
NEEDS_SKLEARN = frozenset(TABLES) - {"teacher"}
