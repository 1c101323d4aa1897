"""Criteo-shaped logs of any length, drawn from a known logistic model, so that the best possible loss is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from pipeline.errors import InputError, StorageError
from pipeline.sample.config import SampleConfig
from pipeline.schema import CRITEO, DENSE_COLUMNS, SPARSE_COLUMNS

SAMPLE_FILE = "sample.json"
LABEL_RATE = 0.25
CHUNK_ROWS = 65_536

_LOG_SCALE = 1.4  # of the integers' logarithm: the tail reaches 10⁵ in a million rows
_INTEGER_LEVELS = np.array([0.5, 1.5, 2.0, 1.0, 6.0, 3.5, 2.0, 2.0, 4.0, 0.0, 1.0, 0.0, 1.5])
_INTEGER_MISSING = np.array([0.45, 0.0, 0.2, 0.2, 0.03, 0.22, 0.04, 0.0, 0.04, 0.45, 0.04, 0.76, 0.2])
_INTEGER_SLOPES = np.array([0.3, 0.0, 0.0, 0.15, 0.0, -0.25, 0.2, 0.0, 0.0, 0.0, 0.2, 0.0, -0.1])
_NEGATIVE_COLUMN = 1  # the one with −1 and −2, as in the real log

_VALUES = np.minimum(CRITEO.bucket_sizes, 100_000)  # distinct categories of each column
_ZIPF = 1.2
_CATEGORY_MISSING = np.where(np.arange(26) % 7 == 2, 0.04, np.where(np.isin(np.arange(26), (18, 21, 24, 25)), 0.4, 0.0))
_FREQUENT = 100  # only this many categories of a column have an effect: they are seen often enough to be learned
_EFFECT_SCALES = np.where((np.arange(26) % 2 == 0) & (_VALUES > 7_000), 0.55, 0.0)
"""Only columns with many more buckets than frequent categories matter, so that hashing hides almost nothing."""


@dataclass(frozen=True, kw_only=True)
class Day:
    """One file of a sample."""

    file: str
    rows: int
    label_rate: float
    best_loss: float
    """Mean log loss of the true probabilities on this day's rows (nats): what no model beats but by luck."""


@dataclass(frozen=True, kw_only=True)
class SampleSummary:
    """What a sample holds; stands beside the days as sample.json."""

    rows: int
    seed: int
    label_rate: float
    best_loss: float
    """As of a day, over all rows."""
    label_entropy: float
    """Loss of the constant label_rate (nats)."""
    days: tuple[Day, ...]

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows in {len(self.days)} file(s), label rate {self.label_rate:.4f}; "
            f"best possible loss {self.best_loss:.4f}, without looking at a row {self.label_entropy:.4f}"
        )


def write_sample(config: SampleConfig, progress: Callable[[int], object] | None = None) -> SampleSummary:
    """Writes the days of a sample and its summary, calling `progress` with the lines written so far.

    The same config gives the same bytes; if they are already there nothing is written. Categories follow Zipf's
    law, integers are lognormal; labels are Bernoulli draws from a logistic model of the encoded columns, so a model
    of the encoded rows can reach `best_loss`. Memory does not depend on `rows`.
    Raises: InputError if `out` holds another sample; StorageError if it cannot be written.
    """
    finished = _finished(config)
    if finished is not None:
        return finished
    model = _Model(config.seed)
    days: list[Day] = []

    def report(rows: int) -> None:
        if progress is not None:
            progress(sum(day.rows for day in days) + rows)

    try:
        config.out.mkdir(parents=True, exist_ok=True)
        for number in range(config.days):
            rows = config.rows * (number + 1) // config.days - config.rows * number // config.days
            day = config.first_day + number
            days.append(_write_day(config.out / f"day_{day}.tsv", model, day, rows, report=report))
        summary = _summary(config, tuple(days))
        partial = config.out / f"{SAMPLE_FILE}.part"
        partial.write_text(json.dumps(asdict(summary), indent=2) + "\n")
        partial.replace(config.out / SAMPLE_FILE)
    except OSError as error:
        for partial in config.out.glob("*.part"):
            if partial.name == f"{SAMPLE_FILE}.part" or re.fullmatch(r"day_\d+\.tsv\.part", partial.name):
                partial.unlink(missing_ok=True)  # whoever frees space should not have to look for it
        raise StorageError(
            f"{config.out} cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error
    return summary


class _Model:
    """The logistic model of a seed: effects of the frequent categories, slopes of a few integers, and the offset
    that makes the label rate LABEL_RATE."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        # One entry more than there are effects: index _FREQUENT for all rarer categories, the last for missing.
        self.effects = rng.normal(size=(26, _FREQUENT + 2)) * _EFFECT_SCALES[:, None]
        self.effects[:, _FREQUENT] = 0.0
        self.words = [_hexadecimal(column, int(count)) for column, count in enumerate(_VALUES)]
        self.offset = 0.0
        logits = np.sort(self.draw(np.random.default_rng([seed, 1]), CHUNK_ROWS)[3])
        low, high = -20.0, 20.0
        while high - low > 1e-9:
            self.offset = (low + high) / 2
            low, high = (
                (low, self.offset) if _sigmoid(logits + self.offset).mean() > LABEL_RATE else (self.offset, high)
            )

    def draw(
        self, rng: np.random.Generator, rows: int
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int32], NDArray[np.float64]]:
        """Integers (13, R), which of them are missing (13, R), category ranks (26, R; −1 = missing), logits (R,)."""
        logs = _INTEGER_LEVELS[:, None] + _LOG_SCALE * rng.standard_normal((13, rows), dtype=np.float32)
        integers = np.minimum(np.exp(logs), 2e9).astype(np.int32)
        missing = rng.random((13, rows), dtype=np.float32) < _INTEGER_MISSING[:, None]
        below = rng.random(rows, dtype=np.float32)
        integers[_NEGATIVE_COLUMN, below < 0.1] = -1
        integers[_NEGATIVE_COLUMN, below < 0.01] = -2

        ranks = np.empty((26, rows), np.int32)
        logits = np.full(rows, self.offset)
        for column, count in enumerate(_VALUES):
            # Inverse of the distribution function of the density x^-zipf on [1, count + 1).
            top = (count + 1.0) ** (1 - _ZIPF) - 1
            drawn = (1 + top * rng.random(rows)) ** (1 / (1 - _ZIPF))
            ranks[column] = np.minimum(drawn.astype(np.int32) - 1, count - 1)
            if _CATEGORY_MISSING[column] > 0:
                ranks[column, rng.random(rows, dtype=np.float32) < _CATEGORY_MISSING[column]] = -1
            logits += self.effects[column, np.minimum(ranks[column], _FREQUENT)]
        for column in np.flatnonzero(_INTEGER_SLOPES):
            # A missing or negative integer is encoded as 0, so it must act as 0.
            seen = np.where(missing[column], 0, np.maximum(integers[column], 0))
            logits += _INTEGER_SLOPES[column] * np.log1p(seen)
        return integers, missing, ranks, logits


def _write_day(path: Path, model: _Model, number: int, rows: int, *, report: Callable[[int], object]) -> Day:
    schema = pa.schema(
        [("label", pa.uint8()), *((n, pa.int32()) for n in DENSE_COLUMNS), *((n, pa.string()) for n in SPARSE_COLUMNS)]
    )
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none", batch_size=CHUNK_ROWS)
    partial = path.with_name(f"{path.name}.part")
    clicks, loss = 0, 0.0
    with partial.open("wb") as file, csv.CSVWriter(file, schema, write_options=options) as writer:
        for start in range(0, rows, CHUNK_ROWS):
            count = min(CHUNK_ROWS, rows - start)
            rng = np.random.default_rng([model.seed, 2, number, start])
            integers, missing, ranks, logits = model.draw(rng, count)
            label = rng.random(count) < _sigmoid(logits)
            clicks += int(label.sum())
            loss += float(np.logaddexp(0, np.where(label, -logits, logits)).sum())
            columns = [pa.array(label.astype(np.uint8))]
            columns += [pa.array(values, mask=mask) for values, mask in zip(integers, missing, strict=True)]
            columns += [
                words.take(pa.array(rank, mask=rank < 0)) for words, rank in zip(model.words, ranks, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            report(start + count)
    partial.replace(path)
    return Day(file=path.name, rows=rows, label_rate=clicks / rows, best_loss=loss / rows)


def _summary(config: SampleConfig, days: tuple[Day, ...]) -> SampleSummary:
    rate = sum(day.label_rate * day.rows for day in days) / config.rows
    certain = rate in (0.0, 1.0)
    return SampleSummary(
        rows=config.rows,
        seed=config.seed,
        label_rate=rate,
        best_loss=sum(day.best_loss * day.rows for day in days) / config.rows,
        label_entropy=0.0 if certain else float(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate)),
        days=days,
    )


def _finished(config: SampleConfig) -> SampleSummary | None:
    """The summary of the same sample if it is already there."""
    try:
        values = json.loads((config.out / SAMPLE_FILE).read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise InputError(f"{config.out} is not a folder; name one for the sample") from None
    summary = SampleSummary(**{**values, "days": tuple(Day(**day) for day in values["days"])})
    first = f"day_{config.first_day}.tsv"
    if (summary.rows, summary.seed, len(summary.days), summary.days[0].file) != (
        config.rows,
        config.seed,
        config.days,
        first,
    ):
        raise InputError(
            f"{config.out} holds another sample ({summary.rows} rows, {len(summary.days)} days from "
            f"{summary.days[0].file} on, seed {summary.seed}); choose another folder or remove it"
        )
    return summary if all((config.out / day.file).is_file() for day in summary.days) else None


def _hexadecimal(column: int, count: int) -> pa.Array:
    """`count` distinct words of 8 hexadecimal digits, other ones in every column (a bijection of 32-bit numbers)."""
    words = np.arange(count, dtype=np.uint32) + np.uint32(column << 20) + np.uint32(1)
    words = (words ^ words >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    words = (words ^ words >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    words ^= words >> np.uint32(16)
    digits = words.astype(">u4").tobytes().hex().encode()
    offsets = np.arange(0, 8 * count + 1, 8, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(digits)])


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits))
