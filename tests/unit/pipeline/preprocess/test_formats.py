"""Formats from TOML: another log through the same code, and mistakes in the description."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.preprocess.command import PreprocessConfig, preprocess
from pipeline.preprocess.formats import find_format, load_format
from pipeline.schema import CRITEO
from tests.log_reference import fingerprint64

AVAZU = """
name = "avazu"
columns = ["id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain",
  "app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type", "C14", "C15", "C16",
  "C17", "C18", "C19", "C20", "C21"]
label = "click"
sparse = ["C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
  "device_id", "device_ip", "device_model", "device_type", "device_conn_type", "C14", "C15", "C16", "C17", "C18", "C19",
  "C20", "C21"]
bucket_sizes = 1_000_003
delimiter = ","
header = true
hexadecimal = false
"""


@pytest.fixture
def avazu(tmp_path: Path) -> Path:
    path = tmp_path / "avazu.toml"
    path.write_text(AVAZU)
    return path


def test_avazu_goes_through_the_same_code(avazu: Path, tmp_path: Path, real_data: Path) -> None:
    log = real_data / "avazu_9999.csv.gz"
    config = PreprocessConfig(
        sources=(str(log),), out=tmp_path / "data", format=str(avazu), split="train", max_rejects="0"
    )
    manifest = preprocess(config).manifest
    log_format = load_format(avazu)
    with gzip.open(log, "rt") as file:
        rows = list(csv.DictReader(file))
    assert manifest.rows == len(rows) == 9999
    (shard,) = manifest.splits["train"].shards
    table = pq.read_table(manifest.root / shard.path)
    assert table.column_names == ["click", *log_format.sparse]
    assert table["click"].to_pylist() == [int(row["click"]) for row in rows]
    for j, name in enumerate(log_format.sparse):
        fields = [row[name] if row[name] not in ("", "-1") else "00000000" for row in rows[:500]]
        assert table[name].to_pylist()[:500] == [fingerprint64(f"{field}{j}".encode()) % 1_000_003 for field in fields]
    assert manifest.statistics["columns"]["C20"]["missing_rate"] == sum(row["C20"] == "-1" for row in rows) / 9999


def test_criteo_is_built_in() -> None:
    assert find_format("criteo") is CRITEO


def test_a_header_that_does_not_fit_is_an_error(tmp_path: Path, avazu: Path) -> None:
    header = ",".join(load_format(avazu).columns)
    for first, why in (
        (header.replace("hour", "day"), "its header names 'day' where format 'avazu' has 'hour'"),
        (header + ",more", "its header has 25 columns instead of 24"),
    ):
        log = tmp_path / "log.csv"
        log.write_text(first + "\n" + "1," * 23 + "1\n")
        config = PreprocessConfig(sources=(str(log),), out=tmp_path / "data", format=str(avazu), split="train")
        with pytest.raises(InputError, match=why):
            preprocess(config)


def test_line_numbers_count_the_header(tmp_path: Path, avazu: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(",".join(load_format(avazu).columns) + "\r\n" + "1,1" + ",a" * 22 + "\r\n" + "what?")
    config = PreprocessConfig(sources=(str(log),), out=tmp_path / "data", format=str(avazu))
    with pytest.raises(InputError, match=r"1 of 2 lines .*log\.csv:3: 1 fields instead of 24"):
        preprocess(config)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("name =", "nmae =", "unknown key 'nmae'"),
        ('label = "click"', "", "label"),
        ('label = "click"', 'label = "clicks"', "'clicks' is not among its columns"),
        ("bucket_sizes = 1_000_003", "bucket_sizes = [1, 2]", "2 bucket sizes for 21 sparse columns"),
        ("bucket_sizes = 1_000_003", "bucket_sizes = 0", "between 1 and"),
        ('delimiter = ","', 'delimiter = ";;"', "must be one byte"),
        ('delimiter = ","', "delimiter = 7", "wrong type"),
        ("header = true", "header = yes", "is no TOML"),
    ],
)
def test_a_mistake_in_the_description_is_said_in_one_line(avazu: Path, before: str, after: str, why: str) -> None:
    assert before in AVAZU
    avazu.write_text(AVAZU.replace(before, after))
    with pytest.raises(InputError) as caught:
        load_format(avazu)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; give `criteo` or the path of a TOML file"):
        find_format(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="cannot be read"):
        find_format(str(tmp_path))
