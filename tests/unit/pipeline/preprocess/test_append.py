"""Appending: a folder gets a generation more, once, and what it had stays as it was."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from pipeline.encode import distinct_estimate
from pipeline.errors import InputError
from pipeline.preprocess import PreprocessConfig, Summary, forecast, preprocess
from pipeline.schema import CRITEO, SPLITS
from pipeline.shards import Manifest, inspect_data, verify_data, warnings_of
from tests.logs import folder_bytes, log_lines, write_log


def append(out: Path, *sources: Path | str, **options: Any) -> Summary:
    config = PreprocessConfig(sources=tuple(map(str, sources)), out=out, append=True, **options)
    return preprocess(config)


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@pytest.fixture
def days(tmp_path: Path) -> list[Path]:
    return [write_log(tmp_path / f"day_{day}.tsv", rows, seed=day) for day, rows in enumerate((210, 120, 90, 75, 60))]


@pytest.fixture
def data(tmp_path: Path, days: list[Path]) -> Path:
    """A folder of the first two days."""
    config = PreprocessConfig(sources=tuple(map(str, days[:2])), out=tmp_path / "data", rows_per_shard=50)
    preprocess(config)
    return tmp_path / "data"


def shards_of(folder: Path, split: str) -> list[bytes]:
    return [(folder / shard.path).read_bytes() for shard in Manifest.load(folder).splits[split].shards]


def test_a_generation_is_what_one_command_makes_of_its_sources(tmp_path: Path, data: Path, days: list[Path]) -> None:
    before = folder_bytes(data)
    manifest = append(data, *days[2:4]).manifest
    append(data, days[4])
    after = folder_bytes(data)
    assert all(after[name] == before[name] for name in before if name.endswith(".parquet"))
    for index, sources in ((1, days[2:4]), (2, days[4:])):
        alone = tmp_path / f"alone-{index}"
        preprocess(PreprocessConfig(sources=tuple(map(str, sources)), out=alone, rows_per_shard=50, split="train"))
        generation, made = Manifest.load(data).generations[index], Manifest.load(alone)
        assert [after[shard.path] for shard in generation.splits["train"].shards] == shards_of(alone, "train")
        assert generation.statistics == made.statistics
        assert generation.plan == made.plan
    assert manifest.upto(1).splits["train"].rows == 210
    names = [shard.path for shard in manifest.generations[1].splits["train"].shards]
    assert [re.sub(r"-[0-9a-f]{8}-", "-", name) for name in names] == [
        f"train/gen-00001-part-{number:05d}.parquet" for number in range(4)
    ]
    assert [Manifest.load(data).splits[name].rows for name in SPLITS] == [210 + 90 + 75 + 60, 57, 63]
    assert not (data / ".append").exists()
    assert verify_data(data).whole
    assert verify_data(data).unlisted == ()


def test_the_whole_has_the_statistics_of_one_command_over_all(tmp_path: Path, data: Path, days: list[Path]) -> None:
    for day in days[2:]:
        append(data, day)
    preprocess(PreprocessConfig(sources=tuple(map(str, days)), out=tmp_path / "one", split="train"))
    found, expected = Manifest.load(data).statistics, Manifest.load(tmp_path / "one").statistics
    assert found["rows"] == expected["rows"]
    assert found["label_rate"] == expected["label_rate"]
    assert {name: split["rows"] for name, split in found["splits"].items()} == {
        "train": 435, "validation": 57, "test": 63,
    }  # fmt: skip
    for name, values in expected["columns"].items():
        assert found["columns"][name] == pytest.approx(values, rel=1e-12, abs=0), name
        assert {key: type(value) for key, value in found["columns"][name].items()} == {
            key: type(value) for key, value in values.items()
        }


def test_without_the_registers_of_earlier_generations_bounds_are_given(data: Path, days: list[Path]) -> None:
    """Of a folder that an earlier version made, or whose registers were lost or are another's."""
    first = Manifest.load(data).statistics["columns"]
    shutil.rmtree(data / "distinct")
    append(data, days[2])
    append(data, days[3])
    manifest = Manifest.load(data)
    for name in CRITEO.sparse:
        column = manifest.statistics["columns"][name]
        assert column["distinct"] is None
        assert column["collision_rate"] is None
        # log_lines draws from 50 values a column, and the missing one
        later = {generation.statistics["columns"][name]["distinct"] for generation in manifest.generations[1:]}
        assert column["distinct_at_least"] >= max(first[name]["distinct"], *later)
        assert column["distinct_at_least"] <= 51
        assert first[name]["distinct"] + max(later) <= column["distinct_at_most"] <= first[name]["distinct"] + 51
        assert 0 <= column["collision_rate_at_least"] < column["collision_rate_at_most"] <= 1
    assert manifest.distinct is not None
    assert manifest.distinct.since == 1
    (row,) = [row for row in inspect_data(data).columns if row["column"] == "C6"]
    assert (row["distinct"], row["distinct_at_least"]) == (
        None,
        manifest.statistics["columns"]["C6"]["distinct_at_least"],
    )
    assert "at least 9" in warnings_of(manifest)[-1]  # C6 has 3 buckets for some 50 values


@pytest.mark.parametrize("kind", ["flipped", "another's"])
def test_registers_that_are_not_the_folders_are_not_used(
    tmp_path: Path, data: Path, days: list[Path], kind: str
) -> None:
    path = data / "distinct/values.hll"
    if kind == "flipped":
        content = bytearray(path.read_bytes())
        content[-77] ^= 1
        path.write_bytes(content)
    else:
        preprocess(PreprocessConfig(sources=(str(days[4]),), out=tmp_path / "other"))
        shutil.copy(tmp_path / "other/distinct/values.hll", path)
    append(data, days[2])
    assert Manifest.load(data).statistics["columns"]["C1"]["distinct"] is None


def test_the_registers_are_of_all_generations_and_one_file_is_kept(data: Path, days: list[Path]) -> None:
    append(data, days[2])
    append(data, days[3])
    (path,) = (data / "distinct").iterdir()
    assert path.name.startswith("gen-00002-")
    registers = np.frombuffer(path.read_bytes().partition(b"\n")[2], np.uint8).reshape(26, -1)
    columns = Manifest.load(data).statistics["columns"]
    assert [distinct_estimate(each) for each in registers] == [columns[name]["distinct"] for name in CRITEO.sparse]
    path.write_bytes(path.read_bytes()[:-1])
    assert verify_data(data).lines() == [f"distinct/{path.name} is missing or differs; no training row depends on it"]


def test_a_folder_that_is_not_there_is_made(tmp_path: Path, days: list[Path]) -> None:
    append(tmp_path / "appended", days[0])
    preprocess(PreprocessConfig(sources=(str(days[0]),), out=tmp_path / "made"))
    assert folder_bytes(tmp_path / "appended") == folder_bytes(tmp_path / "made")


def test_a_folder_that_is_not_finished_is_not_appended_to(tmp_path: Path, days: list[Path]) -> None:
    log = days[0]
    log.write_bytes(joined([*log_lines(100), b"rejected"]))
    for _ in range(2):  # the same sources continue it, and say what is wrong with them
        with pytest.raises(InputError, match="1 of 101 lines read cannot be used"):
            append(tmp_path / "data", log, max_rejects="0")
    with pytest.raises(InputError, match=rf"data is not finished; run .* that began it \({log}\) again, then append"):
        append(tmp_path / "data", days[1], max_rejects="0")
    assert append(tmp_path / "data", log, max_rejects="1").resumed_rows == 100


def test_what_the_folder_has_is_left_out(data: Path, days: list[Path]) -> None:
    assert append(data, *days[:2]).nothing_to_do
    summary = append(data, *days[:3])
    assert summary.added is not None
    assert [source["name"] for source in summary.added.plan["sources"]] == [str(days[2])]
    assert summary.notices == (f"2 of 3 files are in {data} already and left out",)
    before = folder_bytes(data)
    assert append(data, *days[:3]).nothing_to_do
    assert append(data, days[2]).notices == ()
    assert folder_bytes(data) == before


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("kind", ["copied", "packed", "crlf", "touched"])
@pytest.mark.parametrize("index", [0, 2])
def test_a_log_is_known_by_how_it_begins(data: Path, days: list[Path], kind: str, index: int, gone: bool) -> None:
    """Whatever it is called and packed in, and whether what it was made from is still there."""
    append(data, days[2])
    content = days[index].read_bytes()
    again = days[index] if kind == "touched" else data.with_name("again")
    if gone:
        days[index].unlink()
    again.write_bytes({"packed": gzip.compress(content), "crlf": content.replace(b"\n", b"\r\n")}.get(kind, content))
    if kind == "touched":
        os.utime(again, (1e9, 1e9))
    summary = append(data, again)
    assert summary.nothing_to_do
    generation = 0 if index == 0 else 1
    assert summary.notices == (f"{again} is left out: generation {generation} has its rows from {days[index]}",)


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("kind", ["grown", "cut"])
def test_a_log_that_has_grown_is_not_doubled(data: Path, days: list[Path], index: int, kind: str) -> None:
    append(data, days[2])
    lines = days[index].read_bytes().splitlines()
    days[index].write_bytes(joined([*lines, *log_lines(70, seed=99)] if kind == "grown" else lines[:50]))
    before = folder_bytes(data)
    with pytest.raises(
        InputError, match=rf"{days[index]} begins with rows that generation [01] has from {days[index]}"
    ):
        append(data, days[index])
    assert folder_bytes(data) == before


def test_a_name_that_is_used_again_for_other_rows_is_a_new_log(data: Path, days: list[Path]) -> None:
    write_log(days[0], 80, seed=44)
    summary = append(data, days[0])
    assert summary.added is not None
    assert summary.added.rows == 80


def test_of_an_earlier_versions_folder_a_name_that_is_used_again_is_refused(data: Path, days: list[Path]) -> None:
    """Its source is gone, and nobody kept how it began."""
    shutil.rmtree(data / "distinct")
    write_log(days[0], 80, seed=44)
    with pytest.raises(
        InputError, match=r"day_0.tsv is in generation 0 with another size or time, and nobody can tell"
    ):
        append(data, days[0])
    shutil.copy(days[1], days[1].with_name("copy.tsv"))  # what is still there is read again
    assert append(data, days[1].with_name("copy.tsv")).nothing_to_do


def test_rows_that_nobody_recognised_are_known_by_their_shards(
    tmp_path: Path, data: Path, days: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = days[2].read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    append(data, "-")
    before = folder_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert append(data, "-").nothing_to_do
    assert append(data, days[2]).nothing_to_do
    (tmp_path / "more.tsv").write_bytes(content + joined(log_lines(40, seed=9)))
    with pytest.raises(
        InputError, match=r"more.tsv has 50 rows, from line 1 on, that generation 1 of .*data has already"
    ):
        append(data, tmp_path / "more.tsv")
    after = folder_bytes(data)
    assert {name: after[name] for name in before} == before
    assert not list((data / ".append").rglob("*.parquet"))
    assert verify_data(data).unlisted == ()


def test_the_options_are_the_folders(tmp_path: Path, days: list[Path]) -> None:
    data = tmp_path / "data"
    own: dict[str, Any] = {"bucket_sizes": "1000", "compression": "zstd", "rows_per_shard": 40}
    preprocess(PreprocessConfig(sources=(str(days[0]),), out=data, **own))
    for options, words in (
        ({"compression": "none"}, "compression zstd, not none"),
        ({"named": frozenset({"compression"})}, "compression zstd, not lz4"),
        ({"rows_per_shard": 41}, "rows-per-shard 40, not 41"),
        ({"bucket_sizes": "C3=7"}, "other bucket sizes .bucket_sizes: 1000 instead of 7, place 3"),
        ({"format": "criteo-kaggle"}, "another format .name: 'criteo' instead of 'criteo-kaggle'"),
        ({"format": "avazu"}, "another format"),
    ):
        with pytest.raises(InputError, match=f"data was made with {words}.*; leave the option out"):
            append(data, days[1], **options)
    append(data, days[1], **own, format="criteo", named=frozenset({"format"}))
    append(data, days[2])
    manifest = Manifest.load(data)
    assert [each.plan["rows_per_shard"] for each in manifest.generations] == [40, 40, 40]
    assert set(manifest.format.bucket_sizes) == {1000}


def test_rows_of_a_later_generation_can_be_held_out(data: Path, days: list[Path]) -> None:
    append(data, days[2], split="validation")
    append(data, days[3], split="tail", validation=0.2, test=0.2)
    rows = [{name: split.rows for name, split in each.splits.items()} for each in Manifest.load(data).generations]
    assert rows[1:] == [{"train": 0, "validation": 90, "test": 0}, {"train": 45, "validation": 15, "test": 15}]
    with pytest.raises(InputError, match="--split days needs at least two files"):
        append(data, days[4], split="days")


def test_rejected_lines_of_a_generation_are_kept_beside_the_others(tmp_path: Path, data: Path) -> None:
    for number in range(2):
        lines = log_lines(60, seed=70 + number)
        lines[5] = b"rejected"
        (tmp_path / "log.tsv").write_bytes(joined(lines))
        append(data, tmp_path / "log.tsv", max_rejects="1")
    first, second = sorted(path.name for path in (data / "rejects").iterdir())
    assert re.fullmatch(r"gen-00001-[0-9a-f]{8}-00000-log\.tsv\.tsv", first)
    assert second.startswith("gen-00002-")
    manifest = Manifest.load(data)
    assert manifest.rejected_rows == 2
    assert [each.rejected_rows for each in manifest.generations] == [0, 1, 1]
    assert verify_data(data).whole


def test_one_command_at_a_time_appends(data: Path, days: list[Path]) -> None:
    with FileLock(data / ".append.lock"), pytest.raises(InputError, match="is being written by another command; wait"):
        append(data, days[2])
    append(data, days[2])


def test_an_addition_is_continued_and_another_one_drops_it_with_a_word(
    data: Path, days: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = folder_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            append(data, days[2])
    assert list((data / "train").glob("gen-00001-*-part-00000.parquet"))
    assert Manifest.load(data).rows == 330
    # a plain command that finds the folder complete leaves what is begun alone
    preprocess(PreprocessConfig(sources=tuple(map(str, days[:2])), out=data, rows_per_shard=50))
    said: list[str] = []
    config = PreprocessConfig(sources=(str(days[3]),), out=data, append=True)
    assert preprocess(config, warn=said.append).resumed_rows == 0
    assert said == [f"an addition of {days[2]} was begun and not finished; it is dropped, append it again"]
    assert append(data, days[2]).added is not None
    assert [each.rows for each in Manifest.load(data).generations] == [330, 75, 90]
    assert verify_data(data).unlisted == ()
    after = folder_bytes(data)
    assert all(after[name] == whole[name] for name in whole if name.endswith(".parquet"))


def test_shards_that_are_listed_are_never_taken_for_waste(
    data: Path, days: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the manifest was replaced and before the workplace was removed."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipeline.preprocess.workplace.Workplace.remove", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            append(data, days[2])
    assert (data / ".append/final_paths.json").exists()
    append(data, days[3])
    assert verify_data(data).whole
    assert [each.rows for each in Manifest.load(data).generations] == [330, 90, 75]


def test_the_forecast_is_of_what_is_new(data: Path, days: list[Path]) -> None:
    config = PreprocessConfig(sources=tuple(map(str, days[:3])), out=data, append=True)
    expected = forecast(config, measure_seconds=0.01)
    assert expected.sources == (str(days[2]),)
    assert expected.splits == {"train": expected.rows, "validation": 0, "test": 0}
    with pytest.raises(InputError, match=r"nothing to do: .*data has these sources already"):
        forecast(replace(config, sources=config.sources[:2]))


def test_a_shard_of_a_later_generation_that_is_damaged_is_named(data: Path, days: list[Path]) -> None:
    for day in days[2:]:
        append(data, day)
    (path,) = (data / "train").glob("gen-00003-*-part-00000.parquet")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    (line,) = verify_data(data).lines()
    assert line.startswith(f"train/{path.name} differs from what was written")


def test_the_overview_has_a_row_a_generation(data: Path, days: list[Path]) -> None:
    append(data, days[2], days[3])
    overview = inspect_data(data)
    assert [row["rows"] for row in overview.generations] == [330, 165]
    assert [row["sources"] for row in overview.generations] == [2, 2]
    assert overview.data[0]["generations"] == 2
    assert overview.data[0]["sources"] == 4
    assert overview.files["train"] == [str(days[0]), str(days[2]), str(days[3])]
    assert overview.described[-1] == "train, added since: day_2.tsv, day_3.tsv"
    json.dumps(overview.generations)
