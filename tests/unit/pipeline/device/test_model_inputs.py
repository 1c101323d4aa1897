from __future__ import annotations

import copy
import gzip
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import default_convert

from pipeline.device.model_inputs import ModelInputs, to_inputs
from pipeline.rows.columns import logarithms, rows_of_table


@pytest.fixture(params=["tensors", "compiled"])
def transform(request):
    """Both ways to the same model inputs: torch's operators on any device, the compiled encoding on the host."""

    def compiled(label, dense, buckets, *, table_rows) -> ModelInputs:
        moduli = np.broadcast_to(table_rows, len(buckets)).tolist()
        ids = np.stack([rows_of_table(column, rows) for column, rows in zip(buckets, moduli, strict=True)])
        logs = np.stack([logarithms(column) for column in dense])
        return ModelInputs(torch.from_numpy(logs).T, torch.from_numpy(ids), torch.from_numpy(label.astype(np.float32)))

    def tensors(label, dense, buckets, *, table_rows) -> ModelInputs:
        return to_inputs(*columns(label, dense, buckets), table_rows=table_rows)

    return compiled if request.param == "compiled" else tensors


def columns(label, dense, buckets):
    return torch.from_numpy(label), torch.from_numpy(dense), torch.from_numpy(buckets)


@pytest.mark.parametrize(
    ("golden", "log", "rows"),
    [
        ("criteo_1tb_day0_10000", "criteo_1tb_day0_10000", 10_000),
        ("criteo_kaggle_first_5000", "criteo_kaggle_137139", 5_000),
    ],
)
def test_golden_rows_are_equal(real_data, transform, golden, log, rows):
    expected = np.load(real_data / "golden" / f"{golden}.npz")
    with gzip.open(real_data / f"{log}.tsv.gz", "rt") as lines:
        fields = [line.rstrip("\r\n").split("\t") for line, _ in zip(lines, range(rows), strict=False)]
    dense = np.array([[int(value or 0) for value in row[1:14]] for row in fields], np.int32)
    label = np.array([int(row[0]) for row in fields], np.uint8)
    inputs = transform(label, dense.T, expected["bucket"].T.astype(np.int32), table_rows=4_194_304)
    assert inputs.dense.shape == (rows, 13)
    np.testing.assert_array_equal(inputs.ids.numpy(), expected["row"].T)
    np.testing.assert_array_equal(inputs.label.numpy(), expected["label"].astype(np.float32).ravel())
    np.testing.assert_array_max_ulp(inputs.dense.numpy(), expected["dense"], maxulp=1)


@pytest.mark.parametrize(
    "table_rows", [1, 7, 49, 4096, 1_000_003, 4_194_304, (7, 4096, 1_000_003)]
)  # 49 · (1 / 49) < 1 in float64
def test_rows_of_any_table(transform, table_rows):
    """float32 keeps 24 bits, so the reference rounds large buckets to even multiples before the modulo."""
    rng = np.random.default_rng(0)
    buckets = rng.integers(0, 2**31 - 64, (3, 1001), dtype=np.int32)
    moduli = np.broadcast_to(np.array(table_rows), (3,))[:, None]
    buckets[2] -= buckets[2] % moduli[2]  # multiples: what is left of them is 0, not the table's size
    ids = transform(np.zeros(1001, np.uint8), np.zeros((2, 1001), np.int32), buckets, table_rows=table_rows).ids
    expected = buckets.astype(np.float32).astype(np.int64) % moduli
    np.testing.assert_array_equal(ids.numpy(), expected)
    assert ids.dtype == torch.int32


def test_the_logarithm_of_small_large_and_negative_integers(transform):
    dense = np.array([[-2, -1, 0, 1, 8191, 2**24 + 1, 2**31 - 1]], np.int32)
    inputs = transform(np.ones(7, np.uint8), dense, np.zeros((1, 7), np.int32), table_rows=1)
    exact = np.log(np.maximum(dense, 0).astype(np.float64) + 1).astype(np.float32)
    np.testing.assert_array_max_ulp(inputs.dense.numpy().T, exact, maxulp=1)


def test_the_rows_given_are_not_written_to(transform):
    given = np.ones(4, np.uint8), np.full((2, 4), 5, np.int32), np.full((3, 4), 9, np.int32)
    transform(*given, table_rows=2)
    assert (given[1] == 5).all()
    assert (given[2] == 9).all()


def test_nothing_of_what_was_given_is_kept() -> None:
    """Who read the rows may use its memory again while a step still waits to be made."""
    words = torch.ones(4, 5)
    inputs = to_inputs(words[0].byte(), words[1:2].int(), words[2:3].int(), words[3], table_rows=7)
    assert inputs.weight is not None
    words.zero_()
    assert inputs.weight.tolist() == [1.0] * 5
    assert inputs.label.tolist() == [1.0] * 5


def test_weights_stay_with_their_batch_or_a_copy_fails() -> None:
    weight = torch.tensor([2.0, 3.0])
    batch = ModelInputs(torch.zeros(2, 1), torch.zeros(1, 2, dtype=torch.int32), torch.ones(2)).weighed_by(weight)
    assert batch.weight is not None
    for copied in (copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        torch.testing.assert_close(copied(batch).weight, weight)
    torch.testing.assert_close(batch.head(1).weight, weight[:1])
    assert default_convert(batch.weighed_by(None)).weight is None
    with pytest.raises(TypeError, match="copied without them"):
        default_convert(batch)  # as DataLoader does, part by part
    replaced = batch._replace(label=weight)
    torch.testing.assert_close((replaced.label, replaced.weight), (weight, weight))
    with pytest.raises(TypeError, match="copied without them"):
        type(batch)._make(batch)
