"""Formats from TOML: another log through the same code, and mistakes in the description."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encode.tsv import make_layout
from pipeline.errors import InputError
from pipeline.preprocess.command import PreprocessConfig, preprocess
from pipeline.preprocess.formats import find_format, load_format, with_bucket_sizes
from pipeline.schema import CRITEO, LogFormat
from pipeline.shards import warnings_of
from tests.log_reference import fingerprint64
from tests.tiny_data import TINY

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
        ("name =", "nmae =", "unknown key 'nmae'; did you mean 'name'?"),
        ("header = true", "quoting = true", "unknown key 'quoting'; known are bucket_sizes, columns,"),
        ('name = "avazu"', "name = 3", "`name` must be a string, and 3 was given"),
        ('name = "avazu"', 'name = ""', "`name` is empty"),
        ('label = "click"', "", "`label` is missing"),
        ('label = "click"', 'label = "clicks"', "'clicks' is not among its columns; did you mean 'click'?"),
        ('label = "click"', 'label = ["click"]', "`label` must be a string, and ['click'] was given"),
        ('label = "click"', 'label = "C20"', "'C20' is named twice, in `label` and in `sparse`"),
        ('label = "click"', 'label = "click"\ndense = ["C20"]', "'C20' is named twice, in `dense` and in `sparse`"),
        ('label = "click"', 'label = "click"\ndense = "C20"', "`dense` must be a list of strings, and 'C20' was given"),
        ('label = "click"', 'label = "click"\ndense = [20]', "`dense` must be a list of strings, and [20] was given"),
        ('"id", "click"', '"click", "click"', "'click' is named twice in `columns`"),
        ('"id", "click"', '"", "click"', "column '' of `columns` is empty"),
        ('"id", "click"', '"i,d", "click"', "column 'i,d' of `columns` is empty, or has a delimiter"),
        ("bucket_sizes = 1_000_003", "bucket_sizes = [1, 2]", "2 bucket sizes for 21 sparse columns"),
        ("bucket_sizes = 1_000_003", "bucket_sizes = 0", "between 1 and 2³¹ − 1, and 0 was given"),
        ("bucket_sizes = 1_000_003", "bucket_sizes = 2_147_483_648", "between 1 and 2³¹ − 1, and 2147483648 was given"),
        ("bucket_sizes = 1_000_003", "bucket_sizes = 1e6", "`bucket_sizes` must be a whole number, or a list of them"),
        ("bucket_sizes = 1_000_003", "bucket_sizes = true", "must be a whole number, or a list of them, and true was"),
        ("bucket_sizes = 1_000_003", 'bucket_sizes = "9"', "must be a whole number, or a list of them, and '9' was"),
        ("bucket_sizes = 1_000_003", "bucket_sizes = [[1]]", "must be a whole number, or a list of them, and [[1]]"),
        ("bucket_sizes = 1_000_003", "", "`bucket_sizes` is missing"),
        ('delimiter = ","', 'delimiter = ";;"', "must be one byte and no line end, and ';;' was given"),
        ('delimiter = ","', 'delimiter = ""', "must be one byte"),
        ('delimiter = ","', 'delimiter = "é"', "must be one byte"),
        ('delimiter = ","', 'delimiter = "\\n"', "must be one byte"),
        ('delimiter = ","', 'delimiter = "a"', "may be part of a number or a category"),
        ('delimiter = ","', 'delimiter = "."', "may be part of a number or a category"),
        ('delimiter = ","', "delimiter = 7", "`delimiter` must be a string, and 7 was given"),
        ("header = true", "header = yes", "is not TOML"),
        ("header = true", 'header = "true"', "`header` must be true or false, and 'true' was given"),
        ("header = true", "header = 1", "`header` must be true or false, and 1 was given"),
        ("hexadecimal = false", "hexadecimal = 0.0", "`hexadecimal` must be true or false, and 0.0 was given"),
        ("header = true", 'missing = "-1"', "`missing` must be a list of strings, and '-1' was given"),
        ("header = true", "missing = [-1]", "`missing` must be a list of strings, and [-1] was given"),
        ("header = true", "missing = false", "`missing` must be a list of strings, and false was given"),
        ("header = true", 'missing = ["1"]', "would turn every label 1 into 0"),
        ("header = true", 'missing = ["a,b"]', "'a,b' in `missing` has a delimiter"),
        ("header = true", "default_category = 0", "`default_category` must be a string, and 0 was given"),
        ("header = true", "default_category = 2013-01-01", "`default_category` must be a string"),
    ],
)
def test_a_mistake_in_the_description_is_said_in_one_line(avazu: Path, before: str, after: str, why: str) -> None:
    assert before in AVAZU
    avazu.write_text(AVAZU.replace(before, after))
    with pytest.raises(InputError) as caught:
        load_format(avazu)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_format_without_a_feature_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text('columns = ["click"]\nlabel = "click"')
    with pytest.raises(InputError, match="neither `dense` nor `sparse` names a column"):
        load_format(path)


def test_integers_alone_need_no_bucket_sizes(tmp_path: Path) -> None:
    path = tmp_path / "integers.toml"
    path.write_text('columns = ["click", "n"]\nlabel = "click"\ndense = ["n"]')
    assert (load_format(path).name, load_format(path).bucket_sizes) == ("integers", ())


def test_a_byte_order_mark_is_skipped(avazu: Path) -> None:
    expected = load_format(avazu)
    avazu.write_bytes(b"\xef\xbb\xbf" + AVAZU.encode())
    assert load_format(avazu) == expected


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (AVAZU.encode("utf-16"), "is not UTF-8 text"),
        (AVAZU.replace("avazu", "é").encode("latin-1"), "is not UTF-8 text"),
        (b"a = " + b"[" * 100_000, "is not TOML"),
        (b"a = 1" + b"0" * 5000, "is not TOML|cannot be read"),
        (b"", "`columns` is missing"),
    ],
)
def test_bytes_that_are_no_description(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "f.toml").write_bytes(content)
    with pytest.raises(InputError, match=why):
        load_format(tmp_path / "f.toml")


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["click", "n", ","]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=2), values, max_size=2),
    max_leaves=4,
)
_KEYS = st.sampled_from([field.name for field in fields(LogFormat)]) | st.text(max_size=6)


def outcome(content: bytes, folder: Path) -> None:
    """Checks that a description gives a format that the encoder takes, or one line."""
    (folder / "f.toml").write_bytes(content)
    try:
        log_format = load_format(folder / "f.toml")
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert LogFormat.from_dict(json.loads(json.dumps(log_format.to_dict()))) == log_format
        make_layout(log_format)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_format_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    outcome(content, tmp_path_factory.getbasetemp())


@given(st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_any_values_are_a_format_or_one_line(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    usual = {"columns": ["click", "n", "c"], "label": "click", "dense": ["n"], "sparse": ["c"], "bucket_sizes": 9}
    described = {key: value for key, value in {**usual, **values}.items() if _is_toml(value)}
    outcome(tomli_w.dumps(described).encode("utf-8", "surrogatepass"), tmp_path_factory.getbasetemp())


def _is_toml(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_toml, value))
    return all(map(_is_toml, value.values())) if isinstance(value, dict) else value is not None


def test_the_built_in_formats() -> None:
    assert find_format("criteo").bucket_sizes == CRITEO.bucket_sizes
    kaggle, avazu = find_format("criteo-kaggle"), find_format("avazu")
    assert replace(kaggle, name="criteo", bucket_sizes=CRITEO.bucket_sizes) == CRITEO
    assert set(kaggle.bucket_sizes) == set(avazu.bucket_sizes) == {1_000_000}
    with pytest.raises(InputError, match="criteo-kagle does not exist; did you mean 'criteo-kaggle'"):
        find_format("criteo-kagle")


def test_the_kaggle_format_fits_the_kaggle_log(tmp_path: Path, real_data: Path) -> None:
    log = str(real_data / "criteo_kaggle_137139.tsv.gz")
    for name, is_crowded in (("criteo", True), ("criteo-kaggle", False)):
        config = PreprocessConfig(sources=(log,), out=tmp_path / name, format=name, split="train")
        manifest = preprocess(config).manifest
        rates = {column: manifest.statistics["columns"][column]["collision_rate"] for column in CRITEO.sparse}
        # the expectation, from the distinct values in the file itself: n values in B buckets fill B (1 - (1 - 1/B)^n)
        assert (max(rates.values()) > 0.1) == is_crowded
        assert bool(warnings_of(manifest)) == is_crowded
    with gzip.open(log, "rt") as file:
        categories = [line.rstrip("\n").split("\t")[14:] for line in file]
    distinct = max(len(set(column)) for column in zip(*categories, strict=True))
    assert max(rates.values()) == pytest.approx(distinct / 2 / 1_000_000, rel=0.1)


def test_the_avazu_format_reads_the_avazu_log(tmp_path: Path, real_data: Path) -> None:
    config = PreprocessConfig(
        sources=(str(real_data / "avazu_9999.csv.gz"),), out=tmp_path / "data", format="avazu", max_rejects="0"
    )
    assert preprocess(config).manifest.rows == 9999


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("7", (7, 7, 7)),
        ("1_000", (1000,) * 3),
        ("1,2, 3", (1, 2, 3)),
        ("C2=5", (40_000_000, 5, 7)),
        ("C1=1,C3=2", (1, 1000, 2)),
    ],
)
def test_bucket_sizes_by_option(text: str, sizes: tuple[int, ...]) -> None:
    assert with_bucket_sizes(TINY, text) == replace(TINY, bucket_sizes=sizes)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is not a whole number"),
        ("1e6", "'1e6' is not a whole number"),
        ("-1", "'-1' is not a whole number"),
        ("٣", "is not a whole number"),
        ("1,2", "2 bucket sizes for 3 sparse columns"),
        ("0", "between 1 and 2³¹ − 1, and 0 was given"),
        ("C1=0", "between 1 and 2³¹ − 1, and 0 was given"),
        ("C4=9", "'C4' is not a sparse column of tiny; known are C1, C2, C3"),
        ("C1=9,3", "'C1=9' is not a whole number"),
        ("9" * 5000, "is not a whole number"),
    ],
)
def test_bucket_sizes_that_make_no_sense(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        with_bucket_sizes(TINY, text)


def test_a_description_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="does not exist; give criteo, criteo-kaggle, avazu or the path of a TOML file"
    ):
        find_format(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="cannot be read"):
        find_format(str(tmp_path))
