"""What sources are packed in, and what is named because it cannot be read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather, orc, parquet

from pipeline.errors import InputError
from pipeline.preprocess.command import PreprocessConfig, preprocess
from pipeline.source.find import find_sources
from pipeline.source.kinds import foreign_kind
from pipeline.source.packing import packing_of
from tests.logs import folder_bytes, log_lines

TEXT = b"".join(line + b"\n" for line in log_lines(3000))
SKIPPABLE = struct.pack("<III", 0x184D2A5F, 4, 7)


def zstd_with_window(log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(TEXT) + stream.flush()


PACKED: dict[str, bytes] = {
    "bzip2": bz2.compress(TEXT),
    "bzip2 members": bz2.compress(TEXT[:7000]) + bz2.compress(TEXT[7000:]),
    "xz": lzma.compress(TEXT),
    "xz members, padded": lzma.compress(TEXT[:7000]) + bytes(8) + lzma.compress(TEXT[7000:]) + bytes(4),
    "lzma": lzma.compress(TEXT, format=lzma.FORMAT_ALONE),
    "zstd after a skippable frame": SKIPPABLE + zstandard.compress(TEXT),
    "zstd around a skippable frame": zstandard.compress(TEXT[:7000]) + SKIPPABLE + zstandard.compress(TEXT[7000:]),
    "zstd with a window of 256 MiB": zstd_with_window(28),
    "gzip, padded": gzip.compress(TEXT) + bytes(512),
    "gzip members": gzip.compress(TEXT[:7000]) + gzip.compress(b"") + gzip.compress(TEXT[7000:]),
    "byte order mark": b"\xef\xbb\xbf" + TEXT,
    "byte order mark inside": gzip.compress(b"\xef\xbb\xbf" + TEXT),
}


def read(path: Path) -> bytes:
    content, view = bytearray(), memoryview(bytearray(1000))
    (source,) = find_sources([path]).sources
    with source.open() as stream:
        while count := stream.fill(view):
            content += view[:count]
    return bytes(content)


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
def test_packed_logs_give_the_same_rows(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "plain.tsv").write_bytes(TEXT)
    (tmp_path / "log").write_bytes(packed)
    assert read(tmp_path / "log") == TEXT
    for name in ("plain.tsv", "log"):
        config = PreprocessConfig(
            sources=(str(tmp_path / name),), out=tmp_path / f"data_{name}", rows_per_shard=700, max_rejects="0"
        )
        preprocess(config)
    expected, found = folder_bytes(tmp_path / "data_plain.tsv"), folder_bytes(tmp_path / "data_log")
    assert expected.keys() == found.keys()
    assert all(found[name] == content for name, content in expected.items() if name != "manifest.json")


@pytest.mark.parametrize("packed", [PACKED["bzip2 members"], PACKED["xz"], PACKED["zstd with a window of 256 MiB"]])
@pytest.mark.parametrize("damage", ["cut", "flipped", "rubbish behind"])
def test_damage_is_never_the_end(tmp_path: Path, packed: bytes, damage: str) -> None:
    """The standard readers of bzip2 and xz take a damaged second member for the end of the file, in silence."""
    middle = len(packed) // 2
    content = {
        "cut": packed[:-9],
        "flipped": packed[:middle] + bytes([packed[middle] ^ 0x55]) + packed[middle + 1 :],
        "rubbish behind": packed + b"rubbish and more of it",
    }[damage]
    (tmp_path / "log").write_bytes(content)
    try:
        found = read(tmp_path / "log")
    except InputError as error:
        assert "truncated or damaged" in str(error)  # noqa: PT017
    else:  # a flipped bit in a frame without a checksum
        assert damage == "flipped"
        assert packed.startswith(b"\x28\xb5")
        assert len(found) == len(TEXT)


def test_a_header_of_a_byte_order_mark_is_checked_without_it(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text('columns=["click","n"]\nlabel="click"\ndense=["n"]\ndelimiter=","\nheader=true')
    content = b"\xef\xbb\xbfclick,n\r\n" + b"".join(b"%d,%d\r\n" % (i % 2, i) for i in range(20))
    for name, pack in (("plain", bytes), ("packed", gzip.compress)):
        (tmp_path / name).write_bytes(pack(content))
        out, described = tmp_path / f"data_{name}", str(tmp_path / "f.toml")
        config = PreprocessConfig(sources=(str(tmp_path / name),), out=out, format=described, max_rejects="0")
        assert preprocess(config).manifest.statistics["columns"]["n"]["maximum"] == 19
    (tmp_path / "bad").write_bytes(b"1\t2\n" + b"click,n\n" * 3)
    with pytest.raises(InputError, match=r"its header names .* where format 'f' has 'click'"):
        preprocess(
            PreprocessConfig(sources=(str(tmp_path / "bad"),), out=tmp_path / "d", format=str(tmp_path / "f.toml"))
        )


def test_a_window_beyond_what_can_be_decoded_is_said(tmp_path: Path) -> None:
    (tmp_path / "log.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(35 - 10) << 3]) + bytes(20))
    with pytest.raises(InputError, match=r"log\.zst needs a window of 34,359,738,368 bytes, and 2,147,483,648 are"):
        read(tmp_path / "log.zst")


def test_a_dictionary_is_asked_for(tmp_path: Path) -> None:
    dictionary = zstandard.train_dictionary(2000, [line * 3 for line in log_lines(400)])
    (tmp_path / "log.zst").write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT))
    with pytest.raises(InputError, match=f"log.zst needs the dictionary {dictionary.dict_id()} that"):
        read(tmp_path / "log.zst")


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("day_0.tsv", TEXT)
    return file.getvalue()


def _tar(format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        member = tarfile.TarInfo("day_0.tsv")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT))
    return file.getvalue()


def _table(write: Callable[[pa.Table, io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(pa.table({"click": [0, 1] * 50}), file)
    return file.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "zip": (_zip(), "is a Zip archive; unpack it"),
    "tar": (_tar(), "is a tar archive; unpack it"),
    "gnu tar": (_tar(tarfile.GNU_FORMAT), "is a tar archive; unpack it"),
    "tar.gz": (gzip.compress(_tar()), "is a tar archive; unpack it"),
    "tar.xz": (lzma.compress(_tar()), "is a tar archive; unpack it"),
    "zip.gz": (gzip.compress(_zip()), "is a Zip archive"),
    "gz.gz": (gzip.compress(gzip.compress(TEXT)), "is packed twice .there is gzip inside.; unpack it once"),
    "parquet": (_table(parquet.write_table), "is a Parquet file; export it as delimited text"),
    "orc": (_table(orc.write_table), "is an ORC file; export it"),
    "feather": (_table(feather.write_feather), "is an Arrow file; export it"),
    "avro": (b"Obj\x01\x04\x14avro.codec", "is an Avro file; export it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7z archive"),
    "rar": (b"Rar!\x1a\x07\x00", "is a RAR archive"),
    "lz4": (pa.compress(TEXT, "lz4", asbytes=True), "is compressed with lz4; decompress it"),
    "snappy": (b"\xff\x06\x00\x00sNaPpY" + b"\x01" * 30, "is compressed with snappy; decompress it"),
    "compress": (b"\x1f\x9d\x90abc", r"is compressed with compress \(.Z\)"),
    "utf-16": (TEXT.decode().encode("utf-16"), "is UTF-16 text; convert it to UTF-8"),
    "utf-16 big": (b"\xfe\xff" + TEXT.decode().encode("utf-16-be"), "is UTF-16 text; convert it"),
    "utf-16 bare": (TEXT.decode().encode("utf-16-le"), "is UTF-16 text; convert it"),
    "utf-32": (TEXT.decode().encode("utf-32"), "is UTF-32 text; convert it"),
    "json lines": (b'{"click": 1, "n": 3}\n{"click": 0, "n": 3}\n', "holds JSON; write its values as delimited text"),
    "json": (b'[\n  {"click": 1}\n]', "holds JSON"),
    "long json line": (b'{"text": "' + b"a" * 5000 + b'"}\n', "holds JSON"),
    "web page": (b"<!DOCTYPE html>\n<title>Not found</title>", "is a web page or XML; check what was downloaded"),
    "error of a store": (b'\xef\xbb\xbf<?xml version="1.0"?><Error/>', "is a web page or XML"),
    "large file pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "zeros": (bytes(5000), "begins with zero bytes alone"),
    "old macintosh": (TEXT.replace(b"\n", b"\r"), "ends its lines with carriage returns alone"),
}


@pytest.mark.parametrize(("content", "why"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("name", ["day_0", "day_0.tsv"])
def test_what_is_no_delimited_text_is_named(tmp_path: Path, content: bytes, why: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} {why}") as caught:
        preprocess(PreprocessConfig(sources=(str(tmp_path / name),), out=tmp_path / "data"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "head",
    [
        TEXT[:1024],
        b"ORCID,click\n1,2\n",
        b"LZIP\t1\n",
        b"BZh9 is text\n",
        b"]\n",
        b"{x},1\n",
        b'{"a": 1}\t1\t2\n',
        b'{"a\t1\t2\n',
        b"1",
        b"",
        b"\r\n\r\n",
    ],
)
def test_text_is_not_taken_for_anything_else(head: bytes) -> None:
    assert foreign_kind(head) is None
    assert packing_of(head) is None


@given(st.binary(max_size=600))
def test_any_beginning_is_told_without_an_error(head: bytes) -> None:
    said = foreign_kind(head)
    assert said is None or "\n" not in said
    assert packing_of(head) in (None, "gzip", "zstd", "bzip2", "xz")
