"""Shards and manifest: what is written is what is read, whole or not at all, and a changed bit is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, StorageError
from pipeline.schema import LogFormat
from pipeline.shards.manifest import Compression, DistinctFile, Generation, Manifest, RejectsFile, Shard, Split
from pipeline.shards.verify import verify_shard
from pipeline.shards.writer import ShardWriter

TOY = LogFormat(name="toy", columns=("y", "n", "c"), label="y", dense=("n",), sparse=("c",), bucket_sizes=(2**31 - 1,))


def columns(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    present = random.integers(0, 2, (1, rows), np.uint8)
    dense = random.integers(-(2**31), 2**31, (1, rows)).astype(np.int32) * present
    buckets = random.integers(0, 2**31 - 1, (1, rows)).astype(np.int32)
    return random.integers(0, 2, rows).astype(np.uint8), dense.astype(np.int32), present, buckets


def write_shard(root: Path, compression: Compression = "lz4") -> Shard:
    (root / "train").mkdir(exist_ok=True)
    with ShardWriter(root / "train/part-00000.parquet", TOY, compression) as writer:
        writer.write_group(*columns(1000, 1))
        writer.write_group(*columns(77, 2))
        return writer.finish("train/part-00000.parquet")


def write_manifest(root: Path, **changes: Any) -> Manifest:
    shard = write_shard(root)
    values: dict[str, Any] = {
        "folder": root,
        "format": TOY,
        "splits": {"train": Split(shards=(shard,)), "validation": Split(shards=()), "test": Split(shards=())},
        "compression": "lz4",
        "statistics": {"label_rate": 0.5},
        "rejected_rows": 0,
        "rejects": (),
        "plan": {"sources": ["ä"]},
    }
    manifest = Manifest(**(values | changes))
    manifest.save()
    return manifest


@pytest.mark.parametrize("compression", ["lz4", "zstd", "none"])
def test_a_shard_holds_what_was_written(tmp_path: Path, compression: Compression) -> None:
    shard = write_shard(tmp_path, compression)
    assert (shard.rows, shard.row_groups) == (1077, (1000, 77))
    assert shard.bytes == (tmp_path / shard.path).stat().st_size
    with pq.ParquetFile(tmp_path / shard.path, page_checksum_verification=True) as file:
        assert file.schema_arrow.field("y").type == pa.uint8()
        assert file.metadata.row_group(0).column(2).compression == {"none": "UNCOMPRESSED"}.get(
            compression, compression.upper()
        )
        for group, expected in enumerate((columns(1000, 1), columns(77, 2))):
            table = file.read_row_group(group)
            label, dense, present, buckets = expected
            np.testing.assert_array_equal(table["y"].to_numpy(), label)
            np.testing.assert_array_equal(table["c"].to_numpy(), buckets[0])
            np.testing.assert_array_equal(table["n"].is_valid().to_numpy(), present[0].astype(bool))
            np.testing.assert_array_equal(table["n"].fill_null(0).to_numpy(), dense[0])


def test_a_shard_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "part.parquet", TOY, "lz4") as writer:
        writer.write_group(*columns(10))
        assert not (tmp_path / "part.parquet").exists()
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_gives_back_what_was_saved(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert Manifest.load(tmp_path).splits["train"].rows == 1077


def test_a_changed_bit_of_the_manifest_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    append(write_manifest(tmp_path), 1).save()
    path = tmp_path / "manifest.json"
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"manifest\.json is damaged; restore it"):
            Manifest.load(tmp_path)


def test_what_is_no_data_folder_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "begun/.work").mkdir(parents=True)
    for name, why in (
        ("none", "does not exist"),
        ("file", "is not a data folder"),
        (".", "is not a data folder"),
        ("begun", "is not finished"),
    ):
        with pytest.raises(InputError, match=why):
            Manifest.load(tmp_path / name)


EARLIER = Path(__file__).parents[3] / "fixtures/earlier/data"


def append(manifest: Manifest, index: int) -> Manifest:
    """The manifest with one generation more, whose shards are named after it."""

    def shards(split: str, count: int) -> Split:
        (shard,) = manifest.generations[0].splits["train"].shards
        return Split(
            shards=tuple(replace(shard, path=f"{split}/gen-{index}-{number}", rows=index) for number in range(count))
        )

    generation = Generation(
        index=index,
        splits={"train": shards("train", 2), "validation": shards("validation", index == 2), "test": shards("test", 0)},
        statistics={"label_rate": index / 10},
        total={"label_rate": index / 100},
        rejected_rows=index,
        rejects=(RejectsFile(path=f"rejects/{index}.tsv", lines=index, sha256="00"),),
        plan={"sources": [index]},
        beginnings=({"is_whole": True, "digests": [[1024, "ab"]]},),
        created=1e9 + index,
    )
    return manifest.with_generation(generation, DistinctFile(path="distinct/x", sha256="11", since=0))


def test_a_folder_that_was_never_appended_to_is_stored_as_ever(tmp_path: Path) -> None:
    replace(Manifest.load(EARLIER), folder=tmp_path).save()
    before, after = (json.loads((folder / "manifest.json").read_bytes()) for folder in (EARLIER, tmp_path))
    assert after.pop("row_group_crc32") == {}  # which 0.1.0 did not write yet
    assert before.pop("sha256") != after.pop("sha256")
    assert list(after.items()) == list(before.items())
    (only,) = Manifest.load(EARLIER).generations
    assert (only.index, only.rows, only.plan) == (0, 120, Manifest.load(EARLIER).plan)


def test_generations_are_stored_in_order_and_their_union_is_the_folder(tmp_path: Path) -> None:
    first = write_manifest(tmp_path, rejected_rows=4, rejects=(RejectsFile(path="rejects/0", lines=4, sha256="ff"),))
    manifest = append(append(first, 1), 2)
    manifest.save()
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest
    assert [each.index for each in loaded.generations] == [0, 1, 2]
    assert [shard.path for shard in loaded.splits["train"].shards] == [
        "train/part-00000.parquet", "train/gen-1-0", "train/gen-1-1", "train/gen-2-0", "train/gen-2-1",
    ]  # fmt: skip
    assert [shard.path for shard in loaded.splits["validation"].shards] == ["validation/gen-2-0"]
    assert (loaded.rows, loaded.rejected_rows) == (1077 + 2 * 1 + 3 * 2, 4 + 1 + 2)
    assert [file.path for file in loaded.rejects] == ["rejects/0", "rejects/1.tsv", "rejects/2.tsv"]
    assert loaded.statistics == {"label_rate": 0.02}
    assert loaded.plan == first.plan
    assert loaded.generations[0] == first.generations[0]
    assert [each.created for each in loaded.generations] == [None, 1e9 + 1, 1e9 + 2]


def test_a_folder_up_to_a_generation_is_the_folder_as_it_was(tmp_path: Path) -> None:
    first = write_manifest(tmp_path)
    second = append(first, 1)
    append(second, 2).save()
    loaded = Manifest.load(tmp_path)
    assert loaded.upto(1) == first
    assert loaded.upto(2) == replace(second, distinct=None)
    assert loaded.upto(3) is loaded
    with pytest.raises(InputError, match="has 3 of the 4 generations that are asked for; restore the manifest"):
        loaded.upto(4)


def test_an_earlier_program_refuses_a_folder_with_generations(tmp_path: Path) -> None:
    """It reads version 2; of any other it says so in a line, whatever else stands in the file."""
    append(write_manifest(tmp_path), 1).save()
    assert json.loads((tmp_path / "manifest.json").read_bytes())["format_version"] == 3


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (99, "format version 99, this program reads up to 3; upgrade it"),
        (1, "format version 1, this program reads 2; preprocess the log again"),
    ],
)
def test_another_format_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, words: str
) -> None:
    monkeypatch.setattr("pipeline.shards.manifest.FORMAT_VERSION", version)
    write_manifest(tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match=words):
        Manifest.load(tmp_path)


def test_verifying_finds_what_is_missing_short_or_changed(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    (shard,) = manifest.splits["train"].shards
    assert verify_shard(manifest, shard).whole
    path = tmp_path / shard.path
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    report = verify_shard(manifest, shard)
    assert (report.problem, report.readable_rows) == (f"has {len(content) - 1} bytes instead of {len(content)}", 0)
    path.unlink()
    assert verify_shard(manifest, shard).problem == "is missing"


def test_verifying_counts_the_rows_that_can_still_be_read(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    (shard,) = manifest.splits["train"].shards
    path = tmp_path / shard.path
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    report = verify_shard(manifest, shard)
    assert (report.whole, report.problem, report.readable_rows) == (False, "differs from what was written", 77)


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_bytes())
    assert values["format_version"] == 2
    assert values["splits"]["train"][0]["path"] == "train/part-00000.parquet"
