"""Pairs of a remote folder are those of the local one, whatever the cache holds and whatever goes wrong on the way."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipeline.device.config import DataConfig
from pipeline.device.feed import DevicePair
from pipeline.device.model_inputs import ModelInputs
from pipeline.device.opening import open_rows
from pipeline.errors import FetchError, InputError, StorageError
from pipeline.shards.manifest import Manifest, Shard
from pipeline.shards.remote import RemoteFolder
from pipeline.shards.shard_cache import FOLDER
from pipeline.shards.shard_files import DOWNLOAD_THREADS, RemoteShards, cache_folder
from pipeline.shards.verify import verify_data
from tests.store import SECRET, Store, serve
from tests.tiny_data import CPU, feed, flip_in_row_group, same, take, write_tiny

STEPS = 60
"""Of 10 rows each: one epoch and a half of `many_data`."""


@pytest.fixture
def many_data(tmp_path: Path) -> Path:
    """20 shards of two short row groups (400 rows), 5 of validation; all of about one size."""
    shards = [[11, 9]] * 20
    return write_tiny(tmp_path / "many", {"train": shards, "validation": [[30, 20]] * 5})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.remote.PAUSES_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    pytest.importorskip("moto.server", reason="moto serves the store; it is part of the extra `dev`")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with serve("clicks") as store:
            yield store


@pytest.fixture
def options(tmp_path: Path, many_data: Path) -> dict[str, Any]:
    """A cache with room for nine shards, one and a half of the windows that are read at a time."""
    sizes = [shard.bytes for shard in shards_of(many_data)]
    return {"cache_path": str(tmp_path / "cache"), "cache_bytes": 9 * max(sizes), "shuffle_row_groups": 3}


def shards_of(data: Path, split: str = "train") -> tuple[Shard, ...]:
    return Manifest.load(data).splits[split].shards


def uri(data: Path) -> str:
    return data.as_uri()


def evaluated(config: DataConfig, *, limit_rows: int | None = None) -> list[ModelInputs]:
    """The rows of `validation` as an evaluation reads them."""
    manifest = Manifest.load(config.path)
    options: dict[str, Any] = {"table_rows": 9, "device": CPU, "split": "validation", "batch_rows": 70}
    return list(open_rows(config, manifest, **options, limit_rows=limit_rows))


def cached(options: dict[str, Any]) -> list[Path]:
    return sorted(Path(options["cache_path"], FOLDER).glob("*.parquet"))


def assert_same(found: list[DevicePair], expected: list[DevicePair]) -> None:
    assert len(found) == len(expected)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


class Downloads:
    """What is downloaded, in order, and what happens to the first attempts at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.before: Callable[[str, int], object] = lambda name, attempt: None
        self.change: Callable[[bytes, int], bytes] = lambda content, attempt: content
        chunks = RemoteFolder.chunks

        def watched(folder: RemoteFolder, name: str) -> Iterator[pa.Buffer]:
            if name.endswith(".parquet"):
                attempt = self.names.count(name)
                self.names.append(name)
                self.before(name, attempt)
                yield pa.py_buffer(self.change(b"".join(chunks(folder, name)), attempt))
            else:
                yield from chunks(folder, name)

        monkeypatch.setattr(RemoteFolder, "chunks", watched)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Downloads:
    return Downloads(monkeypatch)


@pytest.mark.parametrize("shuffle", ["rows", "files", "none"])
def test_pairs_are_the_local_ones_while_the_cache_holds_a_part(
    many_data: Path, options: dict[str, Any], downloads: Downloads, shuffle: str
) -> None:
    expected = take(many_data, STEPS, shuffle=shuffle)
    if shuffle == "rows":
        expected = take(many_data, STEPS, shuffle_row_groups=3)
    assert_same(take(uri(many_data), STEPS, **{**options, "shuffle": shuffle}), expected)
    assert len(set(downloads.names)) == 20
    assert len(downloads.names) > 20, "what was deleted is downloaded again"
    assert 0 < len(cached(options)) <= 9
    assert sum(path.stat().st_size for path in cached(options)) <= options["cache_bytes"]


def test_from_an_object_store(many_data: Path, options: dict[str, Any], store: Store) -> None:
    address = store.upload(many_data, "clicks/far/data")
    assert_same(take(address, STEPS, **options), take(many_data, STEPS))
    assert Manifest.load(address).splits == Manifest.load(many_data).splits
    assert not any(SECRET.encode() in path.read_bytes() for path in Path(options["cache_path"]).rglob("*.*"))


def test_resume_is_exact(many_data: Path, options: dict[str, Any]) -> None:
    whole = take(many_data, STEPS)
    for cut in (1, 37, 50):
        with feed(uri(many_data), **options) as first:
            got = list(islice(first, cut))
            state = first.state_dict()
        with feed(uri(many_data), **{**options, "cache_bytes": 2 * options["cache_bytes"]}) as second:
            second.load_state_dict(state)
            got += list(islice(second, STEPS - cut))
        assert_same(got, whole)


def test_a_cache_that_holds_all_downloads_once(many_data: Path, options: dict[str, Any], downloads: Downloads) -> None:
    options["cache_bytes"] *= 4
    for _ in range(2):
        take(uri(many_data), STEPS, **options)
    assert sorted(downloads.names) == [shard.path for shard in shards_of(many_data)]


def test_shards_are_fetched_ahead_but_not_without_end(
    many_data: Path, options: dict[str, Any], downloads: Downloads
) -> None:
    """Beyond two windows of 2 row groups that the pairs are from and one read ahead, as many as there are threads."""
    options.update(cache_bytes=4 * options["cache_bytes"], prefetch_batches=1, shuffle_row_groups=2)
    begun = threading.Semaphore(0)
    downloads.before = lambda name, attempt: begun.release()
    with feed(uri(many_data), **options) as pairs:
        next(pairs)
        for _ in range(2 + DOWNLOAD_THREADS):
            assert begun.acquire(timeout=60)
    assert len(downloads.names) <= 6 + DOWNLOAD_THREADS


def test_readers_share_one_folder_at_once(many_data: Path, options: dict[str, Any]) -> None:
    expected = {rank: take(many_data, STEPS, rank=rank, ranks=3) for rank in range(3)}
    with ThreadPoolExecutor(3) as pool:
        runs = {rank: pool.submit(take, uri(many_data), STEPS, rank=rank, ranks=3, **options) for rank in range(3)}
    for rank, run in runs.items():
        assert_same(run.result(), expected[rank])
    assert sum(path.stat().st_size for path in cached(options)) <= options["cache_bytes"]


def test_evaluation_fetches_what_it_reads_and_no_more(
    many_data: Path, options: dict[str, Any], downloads: Downloads
) -> None:
    largest = max(shard.bytes for shard in shards_of(many_data, "validation"))
    config = DataConfig(path=uri(many_data), cache_path=options["cache_path"], cache_bytes=largest)
    for limit, shards in ((60, 2), (None, 5)):
        found, expected = (evaluated(each, limit_rows=limit) for each in (config, DataConfig(path=str(many_data))))
        for a, b in zip(found, expected, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert len(set(downloads.names)) == shards
        assert len(cached(options)) <= 1


def test_a_limit_that_is_too_small_names_the_least_that_works(many_data: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"data\.cache_bytes = 100 is too little") as caught:
        feed(uri(many_data), **{**options, "cache_bytes": 100})
    sizes = sorted((shard.bytes for shard in shards_of(many_data)), reverse=True)
    least = sum(sizes[:6])
    assert f"at least {least}," in str(caught.value)
    assert_same(take(uri(many_data), STEPS, **{**options, "cache_bytes": least}), take(many_data, STEPS))
    with pytest.raises(InputError, match=f"at least {least},"):
        feed(uri(many_data), **{**options, "cache_bytes": least - 1})


def test_a_shard_larger_than_the_cache_is_said(many_data: Path, options: dict[str, Any]) -> None:
    """Evaluation needs room for one shard at a time, and looks for it as it comes to each."""
    shards = shards_of(many_data, "validation")
    largest = max(shard.bytes for shard in shards)
    config = DataConfig(path=uri(many_data), cache_path=options["cache_path"], cache_bytes=largest - 1)
    with pytest.raises(InputError, match=rf"has {largest} bytes.*data\.cache_bytes to at least {largest},") as caught:
        evaluated(config)
    assert str(Path(options["cache_path"], FOLDER)) in str(caught.value)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"x", bytes.swapcase])
def test_a_damaged_download_is_fetched_once_more(
    many_data: Path, options: dict[str, Any], downloads: Downloads, change: Callable[[bytes], bytes]
) -> None:
    downloads.change = lambda content, attempt: change(content) if attempt == 0 else content
    options["cache_bytes"] *= 4
    assert_same(take(uri(many_data), STEPS, **options), take(many_data, STEPS))
    assert len(downloads.names) == 40


def test_a_shard_damaged_in_the_store_is_named_and_kept_from_the_cache(
    many_data: Path, options: dict[str, Any], downloads: Downloads
) -> None:
    expected = take(many_data, 30, damaged="skip")
    shard = many_data / "train/part-00004.parquet"
    whole = shard.read_bytes()
    flip_in_row_group(shard, 1)
    with pytest.raises(StorageError) as caught:
        take(uri(many_data), STEPS, **options)
    message = str(caught.value)
    assert message.startswith(f"{uri(shard)}: row group ")
    assert "it differs from what the manifest says, also when fetched again; upload it anew" in message
    assert "alphastream verify" in message
    assert not isinstance(caught.value, FetchError)
    assert downloads.names.count("train/part-00004.parquet") == 2
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in cached(options))
    with feed(uri(many_data), damaged="skip", **options) as pairs:
        list(islice(pairs, 40))
        assert pairs.skipped_rows == 20, "the whole shard: nothing of it was verified"
    shard.write_bytes(whole)
    assert_same(take(uri(many_data), 30, **options), expected)


def test_a_shard_missing_in_the_store_is_named(many_data: Path, options: dict[str, Any]) -> None:
    (many_data / "train/part-00007.parquet").unlink()
    with pytest.raises(StorageError, match=r"part-00007\.parquet: row group \d cannot be read \(it is missing\)"):
        take(uri(many_data), STEPS, **options)


def test_a_folder_missing_in_the_store_is_no_damage(many_data: Path, options: dict[str, Any]) -> None:
    with feed(uri(many_data), damaged="skip", **options) as pairs:
        next(pairs)
        many_data.rename(many_data.with_name("away"))
        with pytest.raises(FetchError, match=r"has no manifest\.json any more; check its address"):
            list(islice(pairs, STEPS))
        assert pairs.skipped_rows == 0


def test_a_copy_that_rots_in_the_cache_is_downloaded_again(
    many_data: Path, options: dict[str, Any], downloads: Downloads
) -> None:
    options["cache_bytes"] *= 4
    take(uri(many_data), STEPS, **options)
    downloads.names.clear()
    for path in cached(options)[::4]:
        flip_in_row_group(path, 0)
    assert_same(take(uri(many_data), STEPS, damaged="skip", **options), take(many_data, STEPS))
    assert len(downloads.names) == 5


def test_a_network_that_fails_for_a_while_is_survived(
    many_data: Path, options: dict[str, Any], downloads: Downloads
) -> None:
    def fail(name: str, attempt: int) -> None:
        if attempt < 3:
            raise OSError("connection reset")

    downloads.before = fail
    options["cache_bytes"] *= 4
    assert_same(take(uri(many_data), 40, **options), take(many_data, 40))
    assert len(downloads.names) == 80


def test_a_network_that_stays_away_is_no_damage(many_data: Path, options: dict[str, Any], downloads: Downloads) -> None:
    def fail(name: str, attempt: int) -> None:
        raise OSError("no\nroute")

    with feed(uri(many_data), damaged="skip", **options) as pairs:
        next(pairs)
        downloads.before = fail
        with pytest.raises(FetchError) as caught:
            list(islice(pairs, STEPS))
    message = str(caught.value)
    assert message.startswith(f"{uri(many_data)}/train/part-000")
    assert message.endswith("cannot be fetched (no route); check address, network and credentials")


def test_a_manifest_that_is_not_there_or_damaged_is_said(many_data: Path, store: Store) -> None:
    with pytest.raises(InputError, match=r"^s3://clicks/none is not a data folder \(it has no manifest.json\)"):
        Manifest.load(store.uri("clicks/none/"))
    text = (many_data / "manifest.json").read_bytes()
    store.write("clicks/bad/manifest.json", text.replace(b"lz4", b"lzo"))
    with pytest.raises(StorageError, match=r"^s3://clicks/bad/manifest.json is damaged"):
        Manifest.load(store.uri("clicks/bad"))


def test_a_store_that_does_not_answer_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.remote.PAUSES_SECONDS", ())  # the client tries again by itself
    options = "?scheme=http&endpoint_override=127.0.0.1:1"
    with pytest.raises(FetchError, match=r"^s3://logs/data/manifest\.json cannot be fetched") as caught:
        Manifest.load(f"s3://a:b@logs/data{options}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("secret", ["se/cret", "secret"])
def test_a_uri_that_cannot_be_parsed_is_shown_without_its_secret(secret: str) -> None:
    with pytest.raises(InputError, match="cannot be opened") as caught:
        Manifest.load(f"s3://someone:{secret}@bucket/data?bogus=1")
    assert "cret" not in str(caught.value)


def test_closing_ends_a_download_and_every_thread(
    many_data: Path, options: dict[str, Any], downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    reached, files = threading.Semaphore(0), list[RemoteShards]()
    expect = RemoteShards.expect

    def remember(self: RemoteShards, shards: Sequence[int], later: Iterable[int]) -> None:
        files.append(self)
        expect(self, shards, later)

    def hang(name: str, attempt: int) -> None:
        reached.release()
        assert files[0]._closing.wait(60)

    monkeypatch.setattr(RemoteShards, "expect", remember)
    downloads.before = hang
    pairs = feed(uri(many_data), **options)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(lambda: next(pairs))
        assert reached.acquire(timeout=60)
        pairs.close()
        del waiting
    assert threading.active_count() == before
    assert not list(Path(options["cache_path"], FOLDER).glob("*.part"))
    assert not cached(options), "what has not arrived is given up"


def test_downloading_is_a_stage_whose_rows_are_those_opened(many_data: Path, options: dict[str, Any]) -> None:
    options["cache_bytes"] *= 4
    for fetched in (True, False):
        with feed(uri(many_data), **options) as pairs:
            list(islice(pairs, 60))
            stages = pairs.stage_totals()
        seconds, rows = stages["download"]
        assert rows == stages["source_read"][1]
        assert 600 <= rows < 800, "60 pairs of 10 rows, and what was read ahead"
        assert (seconds > 0) == fetched


def test_a_remote_folder_is_verified_without_storing_it(tmp_path: Path, store: Store) -> None:
    data = write_tiny(tmp_path / "data", {"train": [[9, 9], [8], [7, 7], [6, 6]]})
    report = verify_data(store.upload(data, "clicks/verified"))
    assert report.whole
    assert report.rows == 52
    flip_in_row_group(data / "train/part-00000.parquet", 1)
    content = (data / "train/part-00001.parquet").read_bytes()
    (data / "train/part-00001.parquet").write_bytes(content[:-3])
    (data / "train/extra.parquet").touch()
    address = store.upload(data, "clicks/verified")
    store.files.delete_file("clicks/verified/train/part-00003.parquet")
    far = verify_data(address).lines()
    (data / "train/part-00003.parquet").unlink()
    near = verify_data(data).lines()
    assert near[0].endswith("; 9 of its 18 rows can be read")
    assert far[0].endswith("; 0 of its 18 rows can be read"), "a remote shard is read whole or not at all"
    assert far[1:] == near[1:]
    assert len(far) == 4


def test_the_users_own_cache_folder_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "alphastream"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache/alphastream"
    assert cache_folder("~/shards") == tmp_path / "shards"


def test_a_cache_in_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.cache_path: ~nobody_x/cache .*; give a path in full"):
        cache_folder("~nobody_x/cache")
