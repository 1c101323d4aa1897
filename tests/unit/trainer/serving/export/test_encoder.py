"""`encode.py` against TensorFlow's encodings of real rows, and against what training reads, on any bytes."""

from __future__ import annotations

import ast
import gzip
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.encode.tsv import hash_bytes
from pipeline.rows.columns import logarithms, rows_of_table
from pipeline.schema import CRITEO, LogFormat
from tests.log_reference import Row, read_line
from trainer.serving.export import encoder_source

SMALL = LogFormat(
    name="small",
    columns=("click", "id", "n", "c0", "m", "c1"),
    label="click",
    dense=("m", "n"),
    sparse=("c1", "c0"),
    bucket_sizes=(40_000_000, 1000),
    delimiter=",",
)
ANY_TEXT = replace(SMALL, name="any-text", hexadecimal=False, missing=("-1", "NULL", "é"), default_category="ünknown")
NO_CATEGORIES = replace(SMALL, name="numbers", sparse=(), bucket_sizes=(), missing=())
TABLE_ROWS = 1_000_003


@cache
def encoder(log_format: LogFormat) -> dict[str, Any]:
    """The names of the file that an export writes."""
    names: dict[str, Any] = {"__name__": "encode"}
    exec(compile(encoder_source(log_format, TABLE_ROWS), "encode.py", "exec"), names)
    return names


def inputs_of(row: Row) -> tuple[list[float], list[int]]:
    """The model's inputs as training makes them of a row."""
    dense = np.array([value or 0 for value in row.dense], np.int32)
    return logarithms(dense).tolist(), rows_of_table(np.array(row.buckets, np.int32), TABLE_ROWS).tolist()


def assert_alike(line: bytes, log_format: LogFormat) -> None:
    expected = read_line(line.removesuffix(b"\r"), log_format)
    if isinstance(expected, str):
        with pytest.raises(ValueError):
            encoder(log_format)["encode_line"](line + b"\n")
        return
    dense, ids = encoder(log_format)["encode_line"](line + b"\n")
    of_training = inputs_of(expected)
    assert ids == of_training[1]
    np.testing.assert_array_max_ulp(np.array(dense, np.float32), np.array(of_training[0], np.float32), maxulp=1)
    assert dense == np.array(dense, np.float32).tolist()


numbers = st.integers(-(2**33), 2**33).map(str) | st.from_regex(
    r"[ \t]?[+-]?[0-9]{0,4}\.?[0-9]{0,4}([eE][+-]?[0-9]{1,3})?\r?", fullmatch=True
)
categories = st.sampled_from(["", "-1", "NULL", "é", "0" * 8, "abc", "zürich" * 20]) | st.text(max_size=90)
fields = (numbers | categories).map(lambda text: text.encode().replace(b",", b"").replace(b"\n", b""))


@settings(max_examples=400, deadline=None)
@given(
    line=st.tuples(st.sampled_from([b"", b"0", b"1", b"+1", b"1.0", b"2", b"x"]), st.just(b"7"), *[fields] * 4),
    log_format=st.sampled_from([SMALL, ANY_TEXT, NO_CATEGORIES]),
)
def test_any_fields_are_encoded_or_refused_as_in_training(line: tuple[bytes, ...], log_format: LogFormat) -> None:
    assert_alike(b",".join(line), log_format)


@settings(max_examples=200, deadline=None)
@given(integers=st.tuples(numbers, numbers), hexadecimal=st.text("0123456789abcdefABCDEF", max_size=80))
def test_integers_and_hexadecimal_categories_are_training_s(integers: tuple[str, str], hexadecimal: str) -> None:
    assert_alike(f"1,7,{integers[0]},{hexadecimal},{integers[1]},{hexadecimal}".encode(), SMALL)


def test_the_file_is_python_3_9() -> None:
    ast.parse(encoder_source(CRITEO, TABLE_ROWS), feature_version=(3, 9))


@pytest.mark.parametrize(
    "number",
    [
        "1e00000000000000000000000003", "0e99999999999999999999", "1e99999999999999999999", "1e-99999999999999999999",
        "10e-1", "100.00e-2", "0.001e3", "0.0001e3", ".5e1", "5.", ".", "e3", "+-1", "-0", "-0.0e-5", "1e", "1e+",
        "2147483647", "-2147483648", "2147483648", "-2147483649", "21474836470e-1", "0" * 5000 + "7", "7" + "0" * 5000,
        "1" * 5000, "0." + "0" * 5000, "7" + "0" * 5000 + "e-5000", " 7 ", "\v7\f", "7\x1c", "1_000", "٣",
    ],
)  # fmt: skip
def test_numbers_of_any_length_are_training_s(number: str) -> None:
    assert_alike(f"1,7,{number},ab,1,cd".encode(), SMALL)


@pytest.mark.parametrize("length", [*range(70), 100, 127, 128, 129, 191, 192, 193, 300])
def test_the_hash_of_every_length(length: int) -> None:
    text = np.random.default_rng(length).bytes(length)
    assert encoder(SMALL)["fingerprint64"](text) == hash_bytes(text)


def test_the_label_may_be_left_out_and_fields_may_be_texts() -> None:
    encode = encoder(ANY_TEXT)
    expected = encode["encode_line"]("1,7,5,é,6,zürich\r\n")
    assert encode["encode_fields"](["7", "5", "é", "6", "zürich"]) == expected
    assert encode["encode_fields"](["0", "7", "5", "", "6", "zürich"]) == expected


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1,7,5", "3 fields instead of 6"),
        ("2,7,5,ab,6,cd", "click b'2' is neither 0 nor 1"),
        ("1,7,5.5,ab,6,cd", "n b'5.5' is not a whole number"),
        ("1,7,5,ab,3000000000,cd", "m b'3000000000' is outside int32"),
        ("1,7,5,ab,six,cd", "m b'six' is not an integer"),
        ("1,7,5,xyz,6,cd", "c0 b'xyz' is not hexadecimal"),
    ],
)
def test_what_cannot_be_encoded_is_refused_with_a_reason(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        encoder(SMALL)["encode_line"](line)


def test_a_field_of_a_list_may_hold_no_delimiter() -> None:
    with pytest.raises(ValueError, match="c0 has a delimiter or a line end in it"):
        encoder(ANY_TEXT)["encode_fields"](["1", "7", "5", "a,b", "6", "c"])


@pytest.mark.parametrize(
    ("log", "golden"),
    [
        ("criteo_1tb_day0_10000.tsv.gz", "criteo_1tb_day0_10000.npz"),
        ("criteo_kaggle_137139.tsv.gz", "criteo_kaggle_first_5000.npz"),
    ],
)
def test_real_rows_equal_tensorflows_encoding_with_nothing_installed(
    real_data: Path, tmp_path: Path, log: str, golden: str
) -> None:
    expected = np.load(real_data / "golden" / golden)
    rows = len(expected["label"])
    with gzip.open(real_data / log) as file:
        text = b"".join(line for line, _ in zip(file, range(rows), strict=False))
    (tmp_path / "encode.py").write_text(encoder_source(CRITEO, 4_194_304), encoding="utf-8")
    command = [sys.executable, "-I", "-S", str(tmp_path / "encode.py")]
    output = subprocess.run(command, input=text, capture_output=True, check=True, cwd=tmp_path).stdout
    encoded = [json.loads(line) for line in output.splitlines()]
    np.testing.assert_array_equal([row["ids"] for row in encoded], expected["row"])
    np.testing.assert_array_max_ulp(
        np.array([row["dense"] for row in encoded], np.float32), expected["dense"], maxulp=1
    )
