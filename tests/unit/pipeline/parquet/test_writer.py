"""Our Parquet files through other people's readers: any integers, any nulls, every page checked."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.parquet.dictionary import DictionaryEncoder, pack, varint
from pipeline.parquet.writer import Compression, ParquetColumn, ParquetWriter, lz4_literals

COMPRESSIONS: tuple[Compression, ...] = ("lz4", "zstd", "none")
COLUMNS = (ParquetColumn(name="y", unsigned_byte=True), ParquetColumn(name="n", optional=True), ParquetColumn(name="c"))
SCHEMA = pa.schema(
    [pa.field("y", pa.uint8(), nullable=False), pa.field("n", pa.int32()), pa.field("c", pa.int32(), nullable=False)]
)
Group = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make_group(rows: int, distinct: int, present: float, seed: int) -> Group:
    random = np.random.default_rng(seed)
    pool = random.integers(-(2**31), 2**31, distinct)
    return (
        random.integers(0, 256, rows).astype(np.uint8),
        random.choice(pool, rows).astype(np.int32),
        (random.random(rows) < present).astype(np.uint8),
        random.choice(pool, rows).astype(np.int32),
    )


def write(groups: list[Group], compression: Compression) -> bytes:
    sink = io.BytesIO()
    writer = ParquetWriter(sink, COLUMNS, compression)
    for label, dense, present, buckets in groups:
        writer.write_group([(label, None), (dense, present), (buckets, None)])
    writer.finish()
    return sink.getvalue()


def assert_holds(content: bytes, groups: list[Group]) -> None:
    file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
    assert file.schema_arrow == SCHEMA
    assert file.metadata.num_rows == sum(len(group[0]) for group in groups)
    assert file.num_row_groups == len(groups)
    for number, (label, dense, present, buckets) in enumerate(groups):
        table = file.read_row_group(number)
        table.validate(full=True)
        np.testing.assert_array_equal(table["y"].to_numpy(), label)
        np.testing.assert_array_equal(table["c"].to_numpy(), buckets)
        np.testing.assert_array_equal(table["n"].is_valid().to_numpy(), present.astype(bool))
        np.testing.assert_array_equal(table["n"].drop_null().to_numpy(), dense[present.astype(bool)])


@settings(max_examples=80, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(
            st.integers(1, 300), st.integers(1, 300), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**32 - 1)
        ),
        min_size=1,
        max_size=3,
    ),
    compression=st.sampled_from(COMPRESSIONS),
)
def test_what_is_written_is_what_arrow_reads(
    shapes: list[tuple[int, int, float, int]], compression: Compression
) -> None:
    groups = [make_group(*shape) for shape in shapes]
    assert_holds(write(groups, compression), groups)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 65_535, 65_536])
@pytest.mark.parametrize("distinct", [1, 2, 3, 256, 257, 10_000_000])
def test_full_row_groups_and_every_width_of_code(rows: int, distinct: int) -> None:
    groups = [make_group(rows, min(distinct, 70_000), 0.9, 1)]
    if distinct == 10_000_000:
        groups[0][3][:] = np.arange(rows) * 30_011
    assert_holds(write(groups, "lz4"), groups)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_any_flipped_bit_of_a_page_fails_its_checksum(compression: Compression) -> None:
    groups = [make_group(200, 50, 0.7, 2)]
    content = write(groups, compression)
    metadata = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    for index in range(3):
        chunk = metadata.column(index)
        body = chunk.data_page_offset + 40  # behind the page header, which no checksum covers
        for position in range(body, chunk.dictionary_page_offset + chunk.total_compressed_size, 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            file = pq.ParquetFile(io.BytesIO(bytes(damaged)), page_checksum_verification=True)
            with pytest.raises(OSError, match="CRC checksum verification failed"):
                file.read_row_group(0)


def test_the_footer_says_what_is_there() -> None:
    metadata = pq.ParquetFile(io.BytesIO(write([make_group(500, 9, 0.5, 3)] * 20, "lz4"))).metadata
    assert metadata.created_by.startswith("alphastream")
    assert metadata.num_row_groups == 20
    chunk = metadata.row_group(19).column(1)
    assert chunk.compression == "LZ4"
    assert chunk.encodings == ("PLAIN", "RLE", "RLE_DICTIONARY")
    assert chunk.has_dictionary_page
    assert metadata.schema.column(0).converted_type == "UINT_8"


@pytest.mark.parametrize("size", [0, 1, 14, 15, 16, 269, 270, 271, 70_000])
def test_a_block_of_literals_decompresses_to_them(size: int) -> None:
    body = np.random.default_rng(size).bytes(size)
    assert pa.Codec("lz4_raw").decompress(lz4_literals(memoryview(body)), size, asbytes=True) == body


def test_pages_are_compressed_where_it_is_worth_it() -> None:
    random = np.random.default_rng(0)
    rows = 65_536
    zeros, present = np.zeros(rows, np.uint8), np.ones(rows, np.uint8)
    noise = random.integers(0, 2**31, rows).astype(np.int32)
    runs = np.repeat(noise[:512], rows // 512)
    content = write([(zeros, runs, present, noise)], "lz4")
    assert_holds(content, [(zeros, runs, present, noise)])
    chunks = [pq.read_metadata(io.BytesIO(content)).row_group(0).column(c) for c in range(3)]
    shares = [chunk.total_compressed_size / chunk.total_uncompressed_size for chunk in chunks]
    assert shares[0] < 0.1
    assert shares[1] < 0.1
    assert 1 < shares[2] < 1.005


def test_duckdb_reads_it_too(tmp_path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is part of the extra `peers`")
    label, dense, present, buckets = make_group(1000, 40, 0.6, 4)
    (tmp_path / "f.parquet").write_bytes(write([(label, dense, present, buckets)], "lz4"))
    found = duckdb.sql(f"select sum(y), sum(n), count(n), sum(c) from '{tmp_path}/f.parquet'").fetchall()
    kept = dense[present.astype(bool)].astype(np.int64)
    assert found == [(int(label.sum()), int(kept.sum()), len(kept), int(buckets.astype(np.int64).sum()))]


@pytest.mark.parametrize("offset", [0, 1 << 20], ids=["small values", "large values"])
def test_codes_of_an_earlier_lap_of_the_table_are_not_taken_for_new_ones(offset: int) -> None:
    """What a column leaves in the encoder's tables is told apart by 16 bits, which come round after 65,535 columns."""
    encoder = DictionaryEncoder()
    values = np.arange(1000, dtype=np.int32) + np.int32(offset)
    encoder.encode(values, None)
    one = values[:1]
    for _ in range((1 << 16) - 2):
        encoder.encode(one, None)
    for _ in range(2):
        found = [bytes(body) for body in encoder.encode(values[::-1], None)]
        assert found == [bytes(body) for body in DictionaryEncoder().encode(values[::-1], None)]


@pytest.mark.parametrize("highest", [0, 65_535, 65_536, 2**31 - 1, -1])
def test_any_value_is_found_again_at_the_edge_of_the_small_ones(highest: int) -> None:
    values = np.array([3, highest, 0, highest, 65_535, 3], np.int32)
    present = np.ones(len(values), np.uint8)
    group = (np.zeros(len(values), np.uint8), values, present, values)
    assert_holds(write([group, group], "none"), [group, group])


@pytest.mark.parametrize("distinct", [16_383, 16_384, 16_385, 65_536])
def test_columns_of_many_values_are_encoded_too(distinct: int) -> None:
    values = np.random.default_rng(5).permutation(np.resize(np.arange(distinct) * 30_011, 65_536)).astype(np.int32)
    group = (np.zeros(65_536, np.uint8), values, np.ones(65_536, np.uint8), values[::-1].copy())
    assert_holds(write([group, group], "none"), [group, group])


@pytest.mark.parametrize("width", range(1, 17))
def test_codes_are_packed_lowest_bit_first_and_the_last_group_is_filled_with_zeros(width: int) -> None:
    random = np.random.default_rng(width)
    for count in range(70):
        codes = random.integers(0, 1 << width, count).astype(np.uint16)
        words = np.full(count // 4 + 4, 2**64 - 1, np.uint64)
        pack(codes, count, width, words)
        size = -(-count // 8) * width
        expected = sum(int(code) << i * width for i, code in enumerate(codes)).to_bytes(size, "little")
        assert words.tobytes()[:size] == expected


def test_varint_is_base_128() -> None:
    assert [varint(value).hex() for value in (0, 127, 128, 300, 2**35)] == ["00", "7f", "8001", "ac02", "808080808001"]
