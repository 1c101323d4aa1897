"""Statistics against counting in plain Python, and the same however the rows are cut."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv
from pyarrow.compute import call_function

from pipeline.encode.statistics import Counts, collision_rate, distinct_estimate, merged
from pipeline.encode.tsv import make_tally
from pipeline.preprocess.command import PreprocessConfig, preprocess
from pipeline.schema import CRITEO
from tests.log_reference import read_log
from tests.logs import write_log


def test_statistics_equal_counting(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 400)
    config = PreprocessConfig(sources=(str(log),), out=tmp_path / "data", rows_per_shard=70)
    statistics = preprocess(config).manifest.statistics
    rows, _ = read_log(log.read_bytes(), CRITEO)
    fields = [line.split(b"\t") for line in log.read_bytes().splitlines()]
    assert statistics["rows"] == 400
    assert statistics["label_rate"] == sum(row.label for row in rows) / 400
    assert statistics["splits"]["test"] == {"rows": 40, "label_rate": sum(row.label for row in rows[360:]) / 40}
    for i, name in enumerate(CRITEO.dense):
        present = [value for row in rows if (value := row.dense[i]) is not None]
        assert statistics["columns"][name] == {
            "missing_rate": (400 - len(present)) / 400,
            "minimum": min(present),
            "maximum": max(present),
            "mean": sum(present) / len(present),
        }
    for j, name in enumerate(CRITEO.sparse):
        values = [line[14 + j] for line in fields if line[14 + j]]
        column = statistics["columns"][name]
        assert column["missing_rate"] == (400 - len(values)) / 400
        assert column["distinct"] == pytest.approx(len(set(values)), abs=2)
        assert column["buckets"] == CRITEO.bucket_sizes[j]


def test_statistics_of_real_rows_equal_arrows(real_data: Path, tmp_path: Path) -> None:
    """Counted from the text by pyarrow, with nothing of ours between."""
    log = real_data / "criteo_1tb_day0_10000.tsv.gz"
    columns = preprocess(PreprocessConfig(sources=(str(log),), out=tmp_path / "data")).manifest.statistics["columns"]
    integers = dict.fromkeys(CRITEO.dense, pa.int64())
    categories = dict.fromkeys(CRITEO.sparse, pa.string())
    table = csv.read_csv(
        log,
        read_options=csv.ReadOptions(column_names=CRITEO.columns),
        parse_options=csv.ParseOptions(delimiter="\t"),
        convert_options=csv.ConvertOptions(
            column_types=integers | categories, null_values=["", "-1"], strings_can_be_null=True
        ),
    )
    for name in CRITEO.dense:
        column, found = table[name], columns[name]
        assert found["missing_rate"] == column.null_count / 10_000
        assert {"min": found["minimum"], "max": found["maximum"]} == call_function("min_max", [column]).as_py()
        assert found["mean"] == pytest.approx(call_function("mean", [column]).as_py(), rel=1e-12)
    for name in CRITEO.sparse:
        column, found = table[name], columns[name]
        assert found["missing_rate"] == column.null_count / 10_000
        distinct = len(column.drop_null().unique())
        assert found["distinct"] == pytest.approx(distinct, rel=5 * 0.0163)


def test_counts_survive_saving_and_merging(tmp_path: Path) -> None:
    parts = []
    for seed in range(3):
        counts = Counts(CRITEO)
        counts.rows, counts.positive = 10 + seed, seed
        counts.present_D[0], counts.total_D[0] = 5, 2**62 + 1
        counts.minimum_D[0], counts.maximum_D[0] = seed, 9
        counts.tally.missing[3] = seed
        counts.tally.registers[2, seed] = 7
        counts.save(tmp_path / "part.counts")
        parts.append(Counts.load(CRITEO, tmp_path / "part.counts"))
    total = merged(CRITEO, parts)
    assert (total.rows, total.positive, total.present_D[0], total.total_D[0]) == (33, 3, 15, 3 * (2**62 + 1))
    assert (total.minimum_D[0], total.maximum_D[0], total.minimum_D[1]) == (0, 9, None)
    assert (total.tally.missing[3], total.tally.registers[2].sum()) == (3, 21)


@pytest.mark.parametrize("distinct", [0, 10, 1000, 30_000, 200_000])
def test_the_distinct_estimate_is_within_five_standard_errors(distinct: int) -> None:
    registers = make_tally(CRITEO).registers[0]
    state = 88_172_645_463_325_252
    for _ in range(distinct):  # xorshift64: any 64-bit values that look random will do
        state ^= state << 13 & 2**64 - 1
        state ^= state >> 7
        state ^= state << 17 & 2**64 - 1
        rank = 53 - (state >> 12).bit_length()
        register = state & 4095
        registers[register] = max(registers[register], rank)
    assert distinct_estimate(registers) == pytest.approx(distinct, rel=5 * 0.0163)


def test_the_collision_rate_equals_throwing_balls_into_bins() -> None:
    assert collision_rate(0, 10) == 0
    assert collision_rate(1, 10) == pytest.approx(0)
    assert collision_rate(4, 1) == 0.75
    # Two balls into four bins share one with probability 1/4: of two values, 1/8 lose their bucket on average.
    assert collision_rate(2, 4) == pytest.approx(1 / 8)
    assert collision_rate(10**7, 10**3) == pytest.approx(1 - 1e-4)
