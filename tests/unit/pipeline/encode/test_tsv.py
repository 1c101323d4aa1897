"""The kernel against the real encodings and against the plain-Python reference, on any bytes."""

from __future__ import annotations

import gzip
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.encode import tsv
from pipeline.line_buffer import PADDING_BYTES
from pipeline.schema import CRITEO, LogFormat
from tests.log_reference import Row, fingerprint64, read_log

SMALL = LogFormat(
    name="small",
    columns=("click", "id", "n", "c0", "m", "c1", "c2"),
    label="click",
    dense=("n", "m"),
    sparse=("c0", "c1", "c2"),
    bucket_sizes=(1, 1000, 2**31 - 1),
    delimiter=",",
)
ANY_TEXT = replace(SMALL, name="any-text", hexadecimal=False, missing=("-1", "NULL"), default_category="none")
LENGTHS = [*range(34), 47, 63, 64, 65, 66, 100, 127, 128, 129, 191, 192, 193, 300]


def run_kernel(text: bytes, log_format: LogFormat) -> tuple[list[Row], list[tuple[int, str]]]:
    """The kernel's rows and rejects, handed back in the reference's terms; small buffers make it stop often."""
    rows, reasons, _ = run_kernel_and_count(text, log_format)
    return rows, reasons


def run_kernel_and_count(text: bytes, log_format: LogFormat) -> tuple[list[Row], list[tuple[int, str]], list[int]]:
    """The same, with how often each category is missing."""
    if text and not text.endswith(b"\n"):
        text += b"\n"
    buffer = np.frombuffer(text + b"\xff" * PADDING_BYTES, np.uint8).copy()
    layout, scratch = tsv.make_layout(log_format), tsv.make_scratch(log_format)
    group, tally, rejects = tsv.make_group(log_format, 3), tsv.make_tally(log_format), tsv.make_rejects(2)
    rows: list[Row] = []
    reasons: list[tuple[int, str]] = []
    position = lines = 0
    while position < len(text):
        position, filled, taken, rejected = tsv.parse(
            buffer, position, len(text), layout, group, 0, tally, rejects, scratch
        )
        for i in range(filled):
            dense = [int(v) if p else None for v, p in zip(group.dense[:, i], group.present[:, i], strict=True)]
            assert not group.dense[:, i][group.present[:, i] == 0].any()
            rows.append(Row(int(group.label[i]), tuple(dense), tuple(group.buckets[:, i].tolist())))
        for i in range(rejected):
            line = text[rejects.starts[i] : rejects.stops[i]]
            why = tsv.reason(log_format, int(rejects.codes[i]), int(rejects.fields[i]), line)
            reasons.append((lines + int(rejects.lines[i]) + 1, why))
        lines += taken
    return rows, reasons, tally.missing.tolist()


def missing_categories(text: bytes, log_format: LogFormat, rejected: set[int]) -> list[int]:
    """How often each category is missing in the lines (numbered from 1) that are not rejected."""
    lines = [line.removesuffix(b"\r").split(b",") for line in text.removesuffix(b"\n").split(b"\n")]
    used = [line for number, line in enumerate(lines, 1) if number not in rejected] if text else []
    missing = {b"", *(literal.encode() for literal in log_format.missing)}
    positions = [log_format.columns.index(name) for name in log_format.sparse]
    return [sum(line[position] in missing for line in used) for position in positions]


def assert_same(text: bytes, log_format: LogFormat) -> None:
    rows, reasons, missing = run_kernel_and_count(text, log_format)
    expected_rows, expected_reasons = read_log(text, log_format)
    assert rows == expected_rows
    if log_format.delimiter == ",":
        assert missing == missing_categories(text, log_format, {number for number, _ in expected_reasons})
    assert [number for number, _ in reasons] == [number for number, _ in expected_reasons]
    for (_, why), (_, expected) in zip(reasons, expected_reasons, strict=True):
        column, _, problem = expected.partition(" is ")
        assert why.startswith(column)
        assert problem in why


@pytest.mark.parametrize("length", LENGTHS)
def test_fingerprint_equals_the_reference_at_every_length(length: int) -> None:
    text = bytes((i * 37 + 11) % 251 for i in range(length))
    assert tsv.hash_bytes(text) == fingerprint64(text)


@pytest.mark.parametrize(
    ("length", "value"),
    [
        (0, 11160318154034397263),
        (3, 3979540680440595841),
        (7, 10810953559526984053),
        (16, 2161736752036300631),
        (32, 7714376564712875119),
        (64, 1907212410693397370),
        (65, 8220491543423646622),
        (128, 500231257745944714),
        (300, 17002858302555437011),
    ],
)
def test_fingerprint_equals_what_farmhash_itself_gives(length: int, value: int) -> None:
    assert tsv.hash_bytes(bytes((i * 37 + 11) % 251 for i in range(length))) == value


@pytest.mark.parametrize(
    ("log", "golden"),
    [
        ("criteo_1tb_day0_10000.tsv.gz", "criteo_1tb_day0_10000.npz"),
        ("criteo_kaggle_137139.tsv.gz", "criteo_kaggle_first_5000.npz"),
    ],
)
def test_real_rows_equal_tensorflows_encoding(real_data: Path, log: str, golden: str) -> None:
    expected = np.load(real_data / "golden" / golden)
    rows = len(expected["label"])
    with gzip.open(real_data / log) as file:
        text = b"".join(line for line, _ in zip(file, range(rows), strict=False))
    group = tsv.make_group(CRITEO, rows)
    buffer = np.frombuffer(text + bytes(PADDING_BYTES), np.uint8).copy()
    position, filled, lines, rejected = tsv.parse(
        buffer,
        0,
        len(text),
        tsv.make_layout(CRITEO),
        group,
        0,
        tsv.make_tally(CRITEO),
        tsv.make_rejects(),
        tsv.make_scratch(CRITEO),
    )
    assert (position, filled, lines, rejected) == (len(text), rows, rows, 0)
    np.testing.assert_array_equal(group.label, expected["label"])
    np.testing.assert_array_equal(group.buckets[:, :rows].T, expected["bucket"])
    np.testing.assert_array_equal(
        group.buckets[:, :rows].T.astype(np.float32).astype(np.int32) % 4_194_304, expected["row"]
    )
    dense = np.log(np.maximum(group.dense[:, :rows].T, 0).astype(np.float32) + 1)
    np.testing.assert_array_max_ulp(dense, expected["dense"], maxulp=1)
    assert not group.dense[:, :rows][group.present[:, :rows] == 0].any()


def test_the_rules_worked_example_is_of_the_field_before(real_data: Path) -> None:
    """Where the rules give bucket 36634962, hence table row 3080528, for `14f65a5d` in column 19.

    The first row of day 0 has `14f65a5d` in column 20; the bucket is, in TensorFlow's own encoding too, that of the
    field before it. `14f65a5d` in column 19 has another.
    """
    golden = np.load(real_data / "golden/criteo_1tb_day0_10000.npz")
    with gzip.open(real_data / "criteo_1tb_day0_10000.tsv.gz") as file:
        fields = file.readline().rstrip(b"\n").split(b"\t")[14:]
    size = CRITEO.bucket_sizes[19]
    assert fields[20] == b"14f65a5d"
    assert golden["bucket"][0, 19] == tsv.hash_bytes(fields[19] + b"19") % size == 36634962
    assert golden["row"][0, 19] == 3080528
    assert tsv.hash_bytes(b"14f65a5d19") % size == 27234010


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"1,x,5,ab,6,cd", "6 fields instead of 7"),
        (b"1,x,5,ab,6,cd,ef,0", "8 fields instead of 7"),
        (b"2,x,5,ab,6,cd,ef", "click '2' is neither 0 nor 1"),
        (b"0.5,x,5,ab,6,cd,ef", "click '0.5' is neither 0 nor 1"),
        (b"yes,x,5,ab,6,cd,ef", "click 'yes' is neither 0 nor 1"),
        (b"1,x,5.5,ab,6,cd,ef", "n '5.5' is not a whole number"),
        (b"1,x,1e-400,ab,6,cd,ef", "n '1e-400' is not a whole number"),
        (b"1,x,inf,ab,6,cd,ef", "n 'inf' is not finite"),
        (b"1,x,-Infinity,ab,6,cd,ef", "n '-Infinity' is not finite"),
        (b"1,x,NaN,ab,6,cd,ef", "n 'NaN' is not finite"),
        (b"1,x,-,ab,6,cd,ef", "n '-' is not an integer"),
        (b"1,x,5:,ab,6,cd,ef", "n '5:' is not an integer"),
        (b"1,x,/5,ab,6,cd,ef", "n '/5' is not an integer"),
        (b"1,x,0x10,ab,6,cd,ef", "n '0x10' is not an integer"),
        (b"1,x,1e300,ab,6,cd,ef", "n '1e300' is outside int32"),
        (b"1,x,2147483648.0,ab,6,cd,ef", "n '2147483648.0' is outside int32"),
        (b"1,x,5,ab,2147483648,cd,ef", "m '2147483648' is outside int32"),
        (b"1,x,-2147483649,ab,6,cd,ef", "n '-2147483649' is outside int32"),
        (b"1,x,5,ab,6,xyz,ef", "c1 'xyz' is not hexadecimal"),
        (b"1,x,5,ab,6,0123456g,ef", "c1 '0123456g' is not hexadecimal"),
        (b"1,x,5,ab,6,cd,\xff\xff", "c2 '\\\\xff\\\\xff' is not hexadecimal"),
        (b"", "empty line"),
        (b"\r", "empty line"),
    ],
)
def test_a_line_that_cannot_be_used_says_why(line: bytes, why: str) -> None:
    good = b"1,x,5,ab,6,cd,ef\n"
    rows, reasons = run_kernel(good + line + b"\n" + good, SMALL)
    assert reasons == [(2, why)]
    assert len(rows) == 2


def test_int32_bounds_are_integers_like_any_other() -> None:
    rows, reasons = run_kernel(b"1,,-2147483648,ab,2147483647,cd,ef\n0,,-0,ab,007,cd,ef", SMALL)
    assert not reasons
    assert [row.dense for row in rows] == [(-(2**31), 2**31 - 1), (0, 7)]


@pytest.mark.parametrize(
    ("spelling", "value"),
    [
        (b"14.0", 14), (b"1e3", 1000), (b"-2.0", -2), (b"+5", 5), (b" 5", 5), (b"5 ", 5), (b"5.", 5), (b".0", 0),
        (b"1E3", 1000), (b"1e+3", 1000), (b"1e-0", 1), (b"10e-1", 1), (b"100.0e-2", 1), (b"-0.0", 0), (b"007", 7),
        (b"5\x0b", 5), (b"0e999", 0), (b"12.50e1", 125), (b"1.0", 1), (b"-1.0", -1), (b"2147483647.0", 2**31 - 1),
        (b"-2147483648.000", -(2**31)), (b"0.000021e6", 21), (b"1" + b"0" * 40 + b"e-40", 1),
        (b"-", None), (b"+", None), (b".", None), (b"", 0), (b"- 5", None), (b"+-5", None), (b"--5", None),
        (b"1_000", None), (b"1e", None), (b"e3", None), (b"1e3.0", None), (b"1d3", None), (b"5f", None), (b"  ", None),
        (b"1 000", None), (b"5\xa0", None), ("٣".encode(), None),
    ],
)  # fmt: skip
def test_numbers_are_those_that_tensorflow_reads(spelling: bytes, value: int | None) -> None:
    """`value` is what tf.io.decode_csv of TensorFlow 2.21 gives for a float field, before rounding to float32; None: it
    refuses."""
    rows, reasons = run_kernel(b"1,x,%b,ab,6,cd,ef\n" % spelling, SMALL)
    if value is None:
        assert [why.rpartition("' ")[2] for _, why in reasons] == ["is not an integer"]
    else:
        assert [row.dense[0] or 0 for row in rows] == [value]


@pytest.mark.parametrize("spelling", [b"1.0", b"1e0", b"+1", b"01", b"10e-1"])
def test_labels_are_numbers_too(spelling: bytes) -> None:
    """As pandas writes them if any is missing."""
    (row,), _ = run_kernel(b"%b,x,5,ab,6,cd,ef\n" % spelling, SMALL)
    (zero,), _ = run_kernel(b"%b,x,5,ab,6,cd,ef\n" % spelling.replace(b"1", b"0", 1), SMALL)
    assert (row.label, zero.label) == (1, 0)


@settings(max_examples=500, deadline=None)
@given(value=st.integers(-(2**33), 2**33), places=st.integers(-12, 12), tail=st.sampled_from([b"", b"0", b"00", b"1"]))
def test_any_decimal_is_kept_exactly_or_rejected(value: int, places: int, tail: bytes) -> None:
    """The point anywhere in the digits, and an exponent that puts it back."""
    digits = b"%d" % abs(value)
    at = min(max(places, 0), len(digits))
    whole, fraction = digits[: len(digits) - at], digits[len(digits) - at :] + tail
    text = b"%b%b.%be%d" % (b"-" if value < 0 else b"", whole, fraction, places)
    exact = Fraction(text.decode().replace("-.", "-0.") if whole else text.decode().replace(".", "0.", 1))
    rows, reasons = run_kernel(b"1,x,%b,ab,6,cd,ef\n" % text, SMALL)
    if exact.denominator != 1:
        assert reasons[0][1].endswith("is not a whole number")
    elif not -(2**31) <= exact < 2**31:
        assert reasons[0][1].endswith("is outside int32")
    else:
        assert [row.dense[0] for row in rows] == [int(exact)]


def test_missing_means_empty_or_minus_one() -> None:
    rows, _ = run_kernel(b"-1,-1,-1,-1,,-1,\n,,,,-1,,-1\r\n0,,,00000000,,00000000,00000000\n", SMALL)
    assert rows[0] == rows[1] == rows[2]
    assert rows[0].label == 0
    assert rows[0].dense == (None, None)


def test_distinct_registers_ignore_missing_categories_and_rejected_lines() -> None:
    text = b"1,x,5,aa,6,cd,ef\n1,x,5,,6,cd,ef\n1,x,5,bb,6,cd,zz\n"
    buffer = np.frombuffer(text + bytes(PADDING_BYTES), np.uint8).copy()
    tally = tsv.make_tally(SMALL)
    group, layout = tsv.make_group(SMALL, 8), tsv.make_layout(SMALL)
    tsv.parse(buffer, 0, len(text), layout, group, 0, tally, tsv.make_rejects(), tsv.make_scratch(SMALL))
    assert tally.missing.tolist() == [1, 0, 0]
    assert (tally.registers > 0).sum(axis=1).tolist() == [1, 1, 1]


# What a field may be, and what is nearly that: each kind at the lengths, values and bytes where the kernel decides.
DIGITS = b"0123456789abcdefABCDEF"
BESIDE_DIGITS = bytes({byte + step for byte in DIGITS for step in (-1, 1)} - set(DIGITS)) + b"\x80\xb0\xff"
short_hexadecimal = st.lists(st.sampled_from(DIGITS), min_size=1, max_size=20).map(bytes)
eight_digits = st.lists(st.sampled_from(DIGITS), min_size=8, max_size=8).map(bytes)
nearly_eight_digits = st.tuples(eight_digits, st.integers(0, 7), st.sampled_from(BESIDE_DIGITS)).map(
    lambda t: t[0][: t[1]] + bytes([t[2]]) + t[0][t[1] + 1 :]
)
hexadecimal = eight_digits | short_hexadecimal | st.binary(max_size=70).map(lambda raw: raw.hex().encode())
near_powers = st.tuples(st.sampled_from([0, 31, 32, 40, 63, 64, 65, 128]), st.integers(-2, 2), st.sampled_from([1, -1]))
integers = (
    st.integers(-3, 10**8)
    | st.integers()
    | near_powers.map(lambda t: t[2] * (2 ** t[0] + t[1]))
    | st.sampled_from([2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**64 + 5, -(2**64) - 5])
).map(lambda n: str(n).encode()) | st.tuples(st.integers(1, 12), st.integers(0, 10**7)).map(
    lambda t: b"%0*d" % t  # leading zeros
)
nearly_integers = st.tuples(
    st.lists(st.sampled_from(b"0123456789"), max_size=9).map(bytes),
    st.integers(0, 9),
    st.sampled_from(b"-+./:;aA \r\0\xb0\xff"),
).map(lambda t: t[0][: t[1]] + bytes([t[2]]) + t[0][t[1] :]) | st.lists(
    st.sampled_from(b"0012359.eE+- "), min_size=1, max_size=9
).map(bytes)
odd = st.sampled_from([b"", b"-1", b"-", b"--1", b"-2", b"+1", b"0x1", b"NULL", b"NUL", b"NULLS", b"\r", b" 1", b"1e3"])
labels = st.sampled_from([b"0", b"1"])
nearly_labels = st.sampled_from([b"", b"-1", b"2", b"/", b"00", b"11", b"1\r", b" 1"])
anything = st.binary(max_size=24).map(lambda raw: raw.replace(b"\n", b"").replace(b",", b""))
USUAL = (labels, anything, integers, hexadecimal, integers, hexadecimal, hexadecimal)
NEARLY = {
    labels: nearly_labels,
    anything: anything,
    integers: nearly_integers | odd,
    hexadecimal: nearly_eight_digits | odd,
}


@st.composite
def log_lines(draw: st.DrawFn) -> bytes:
    """A line whose fields are as they should be; or one that is nearly; or whatever, and any number of them."""
    kind = draw(st.sampled_from(["usual", "one off", "one off", "number of fields", "whatever"]))
    fields = [draw(field) for field in USUAL]
    if kind == "one off":
        at = draw(st.integers(0, len(USUAL) - 1))
        fields[at] = draw(NEARLY[USUAL[at]] | anything)
    elif kind == "number of fields":
        fields = fields[: draw(st.integers(0, 6))] if draw(st.booleans()) else [*fields, draw(odd | hexadecimal)]
    elif kind == "whatever":
        fields = draw(st.lists(odd | hexadecimal | integers | anything, max_size=9))
    return b",".join(fields)


LOGS = st.lists(st.tuples(log_lines(), st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n\r\n"])), max_size=8).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@settings(max_examples=150, deadline=None)
@given(text=LOGS, cut=st.integers(0, 4), log_format=st.sampled_from([SMALL, ANY_TEXT]))
def test_any_log_reads_as_the_reference_reads_it(text: bytes, cut: int, log_format: LogFormat) -> None:
    assert_same(text[: len(text) - cut], log_format)


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=200), log_format=st.sampled_from([SMALL, ANY_TEXT, CRITEO]))
def test_any_bytes_read_as_the_reference_reads_them(text: bytes, log_format: LogFormat) -> None:
    assert_same(text, log_format)


@settings(max_examples=300, deadline=None)
@given(category=eight_digits | nearly_eight_digits, integer=nearly_integers | integers)
def test_eight_bytes_at_a_time_agree_with_one_at_a_time(category: bytes, integer: bytes) -> None:
    assert_same(b"1,,1,%b,1,%b,%b\n" % (category, category, category), SMALL)
    assert_same(b"1,,%b,ab,%b,cd,ef\n" % (integer, integer), SMALL)
