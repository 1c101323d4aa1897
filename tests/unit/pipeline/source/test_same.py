"""No log twice: two names of one file, or equal content however it is packed, are told before all of it is read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.preprocess.plan import Plan, PreprocessConfig
from pipeline.schema import CRITEO, LogFormat
from pipeline.source import same
from pipeline.source.find import find_sources
from pipeline.source.same import check_sources
from tests.logs import log_lines

COMMA = LogFormat(
    name="comma",
    columns=("click", "n"),
    label="click",
    dense=("n",),
    sparse=(),
    bucket_sizes=(),
    delimiter=",",
    header=True,
)
PACKS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def text(rows: int, seed: int = 0) -> bytes:
    return b"".join(line + b"\n" for line in log_lines(rows, seed))


def check(*names: Path | str, log_format: LogFormat = CRITEO) -> None:
    check_sources(find_sources(names).sources, log_format)


def pair(tmp_path: Path, first: bytes, second: bytes) -> tuple[Path, Path]:
    (tmp_path / "first").write_bytes(first)
    (tmp_path / "second").write_bytes(second)
    return tmp_path / "first", tmp_path / "second"


@pytest.mark.parametrize("other", ["symbolic", "hard", "dots", "uri", "encoded uri", "slashes"])
def test_one_file_under_two_names(tmp_path: Path, other: str) -> None:
    log = tmp_path / "log 1.tsv"
    log.write_bytes(text(40))
    (tmp_path / "symbolic").symlink_to(log)
    os.link(log, tmp_path / "hard")
    names = {
        "dots": f"{tmp_path}/x/../log 1.tsv",
        "uri": f"file://{tmp_path}/log%201.tsv",
        "encoded uri": f"file://{tmp_path}/%6cog%201.tsv",
        "slashes": f"{tmp_path.as_uri()}//log%201.tsv",
    }
    (tmp_path / "x").mkdir()
    second = names.get(other, str(tmp_path / other))
    with pytest.raises(InputError) as caught:
        check(log, second)
    assert str(caught.value) == f"{log} and {second} are one file; name each source once"


def test_the_same_name_twice(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_bytes(text(40))
    with pytest.raises(InputError, match=r"log\.tsv is named twice; name each source once"):
        check(tmp_path / "log.tsv", tmp_path / "log.tsv")


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_equal_content_however_it_is_packed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    content = text(300)
    with pytest.raises(InputError) as caught:
        check(*pair(tmp_path, content, pack(content)))
    assert str(caught.value) == f"{tmp_path}/first and {tmp_path}/second hold the same rows; name each log once"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content[:-1],
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: gzip.compress(content[:999]) + gzip.compress(content[999:].replace(b"\n", b"\r\n")),
    ],
    ids=["crlf", "no final line end", "byte order mark", "members"],
)
@pytest.mark.parametrize("rows", [1, 40, 20_000])
def test_equal_rows_however_they_are_written(tmp_path: Path, change: Callable[[bytes], bytes], rows: int) -> None:
    content = text(rows)
    with pytest.raises(InputError, match="hold the same rows; name each log once"):
        check(*pair(tmp_path, content, change(content)))


@pytest.mark.parametrize("rows", [30, 2000])
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_the_beginning_of_another_log(tmp_path: Path, rows: int, kept: float) -> None:
    content = text(rows)
    first, second = pair(tmp_path, content, content[: int(kept * len(content))])
    for given_names in ((first, second), (second, first)):
        with pytest.raises(InputError, match=r"hold the same rows \(second is the beginning of the other\)"):
            check(*given_names)


@pytest.mark.parametrize("change", [bytes, lambda log: log.replace(b"\n", b"\r\n"), lambda log: log[:-1]])
def test_the_end_of_another_log(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    first, second, third = (text(300, seed) for seed in range(3))
    with pytest.raises(InputError, match=r"first and .*second hold the same rows \(second is the end of the other\)"):
        check(*pair(tmp_path, first + second, change(second)))
    check(*pair(tmp_path, first + second, change(third)))
    check(*pair(tmp_path, first + second, third + second[-600:]))


def test_a_third_log_does_not_hide_a_pair(tmp_path: Path) -> None:
    content = text(200)
    first, second = pair(tmp_path, content, gzip.compress(content))
    (tmp_path / "between").write_bytes(content[:-20] + b"f" * 19 + b"\n")
    (tmp_path / "longer").write_bytes(content + text(5, seed=1))
    with pytest.raises(InputError, match=r"first and .*second hold the same rows"):
        check(first, tmp_path / "between", second)
    with pytest.raises(InputError, match=r"\(first is the beginning of the other\)"):
        check(tmp_path / "longer", tmp_path / "between", first)


def test_logs_that_merely_begin_alike(tmp_path: Path) -> None:
    content = text(2000)
    for cut in (100, same.BEGINNING_BYTES, same.BEGINNING_BYTES + 1, len(content) - 2):
        other = content[:cut] + bytes([content[cut] ^ 1]) + content[cut + 1 :]
        check(*pair(tmp_path, content, gzip.compress(other)))
    check(*pair(tmp_path, content, content.splitlines(keepends=True)[0]))


def test_logs_that_agree_for_very_long_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same, "COMPARED_BYTES", 100_000)
    content = text(2000)
    with pytest.raises(InputError, match=r"hold the same rows \(their first [\d,]+ bytes are\)"):
        check(*pair(tmp_path, content, content + b"other"))
    with pytest.raises(InputError, match=r"hold the same rows \(their last [\d,]+ bytes are\)"):
        check(*pair(tmp_path, content, content[:50_000] + b"\n" + content[50_001:]))
    check(*pair(tmp_path, content, content[:50_000] + b"\n" + content[50_001:-50_000] + b"\n" + content[-49_999:]))


def test_a_header_is_no_row(tmp_path: Path) -> None:
    first, second = pair(tmp_path, b"click,n\n1,2\n", b"click,n\r\n1,3\r\n")
    check(first, second, log_format=COMMA)
    for content in (b"click,n\n", b"click,n", b"click,n\r\n", b"\xef\xbb\xbfclick,n\n"):
        second.write_bytes(gzip.compress(content))
        with pytest.raises(InputError, match="second is empty; remove it from the sources or fetch it again"):
            check(first, second, log_format=COMMA)


def test_a_header_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    columns = tuple(f"column_{i}" for i in range(same.BEGINNING_BYTES // 8))
    log_format = replace(COMMA, columns=("click", *columns), dense=columns)
    header = ",".join(log_format.columns).encode()
    check(*pair(tmp_path, header + b"\n1,2\n", header + b"\n1,3\n"), log_format=log_format)


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf"])
def test_nothing_inside_is_an_empty_log(tmp_path: Path, pack: Callable[[bytes], bytes], content: bytes) -> None:
    first, second = pair(tmp_path, text(3), pack(content))
    with pytest.raises(InputError, match="second is empty; remove it from the sources or fetch it again"):
        check(first, second)


def test_what_lies_in_the_data_folder_is_left_alone_by_a_refusal(tmp_path: Path) -> None:
    first, second = pair(tmp_path, text(40), text(40))
    with pytest.raises(InputError, match="hold the same rows"):
        Plan.make(PreprocessConfig(sources=(str(first), str(second)), out=tmp_path / "data"))
    assert not (tmp_path / "data").exists()


_HOW = st.sampled_from(["plain", "gzip", "zstd", "bzip2", "xz", "symbolic", "hard", "crlf", "uri"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), _HOW), min_size=1, max_size=5))
def test_any_list_of_files_gives_disjoint_splits_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[int, int, str]]
) -> None:
    """Each file holds one of four contents, all of it or a part, in some packing or under another name."""
    folder = tmp_path_factory.mktemp("files")
    contents = [text(rows, seed) for seed, rows in enumerate((8, 30, 90, 400))]
    held: list[bytes] = []
    names: list[str] = []
    for number, (which, part, how) in enumerate(files):
        content = contents[which]
        content = content[: (len(content), len(content) * 3 // 4, len(content) // 2)[part]]
        original, path = folder / f"original_{which}_{part}", folder / f"file_{number}"
        original.write_bytes(content)
        if how == "symbolic":
            path.symlink_to(original)
        elif how == "hard":
            os.link(original, path)
        elif how == "crlf":
            path.write_bytes(content.replace(b"\n", b"\r\n"))
        else:
            path.write_bytes(PACKS.get(how, bytes)(content))
        names.append(path.as_uri() if how == "uri" else str(path))
        held.append(content)
    chance = random.Random(len(files))
    chance.shuffle(names)
    disjoint = len({which for which, _, _ in files}) == len(files)
    try:
        plan = Plan.make(PreprocessConfig(sources=tuple(names), out=folder / "data"))
    except InputError as error:
        assert not disjoint, error  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert disjoint
        assert [source.name for source in plan.sources] == names
