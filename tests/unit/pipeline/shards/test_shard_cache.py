"""The cache keeps to its limit, deletes nothing but what it wrote, and is shared by processes that may be killed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import FetchError, InputError, StorageError
from pipeline.shards.shard_cache import FOLDER, MARK, MARKER, ShardCache

SIZE = 1000


def content(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def key(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def put(cache: ShardCache, number: int, keep: tuple[str, ...] = ()) -> bool:
    """Downloads shard `number`; whether there was room and need."""
    download = cache.begin(key(number), SIZE, keep=keep)
    if download is None:
        return False
    with download:
        download.write(content(number)[:400])
        download.write(content(number)[400:])
        download.finish()
    return True


def held(cache: ShardCache, count: int = 20) -> list[int]:
    """Which of the first shards can be opened, and are what they should be."""
    found = []
    for number in range(count):
        file = cache.open(key(number))
        if file is not None:
            with file:
                assert file.read() == content(number)
            found.append(number)
    return found


def shard_bytes(folder: Path) -> int:
    """What the shards in a cache's folder take, as anybody sees it from outside."""
    sizes = {}  # by inode: a download that is getting its name has two for a moment
    for entry in os.scandir(folder):
        if entry.name.endswith((".parquet", ".part")):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ShardCache]:
    """Room for four shards and a half."""
    with closing(ShardCache(tmp_path, 4 * SIZE + SIZE // 2)) as cache:
        yield cache


def test_the_least_recently_used_goes_first(cache: ShardCache) -> None:
    assert all(put(cache, number) for number in range(4))
    cache.use([key(1), key(0)])
    assert put(cache, 4)
    assert held(cache) == [0, 1, 3, 4]
    assert put(cache, 5)
    assert held(cache) == [0, 1, 4, 5]
    assert put(cache, 6)
    assert held(cache) == [0, 4, 5, 6]
    assert cache.used_bytes() == shard_bytes(cache.folder) == 4 * SIZE


def test_a_shard_that_is_here_is_not_downloaded(cache: ShardCache) -> None:
    assert put(cache, 0)
    assert not put(cache, 0)
    cache.discard(key(0))
    assert put(cache, 0)


def test_nothing_is_deleted_where_that_makes_no_room(cache: ShardCache) -> None:
    for number in range(4):
        put(cache, number)
    assert not put(cache, 4, keep=tuple(key(number) for number in range(4)))
    assert cache.begin(key(5), 5 * SIZE) is None
    assert held(cache) == [0, 1, 2, 3]
    assert put(cache, 4, keep=(key(0), key(1), key(3)))
    assert held(cache) == [0, 1, 3, 4]


def test_a_download_counts_from_its_start_and_no_longer_than_it_lasts(cache: ShardCache) -> None:
    download = cache.begin(key(0), 4 * SIZE)
    assert download is not None
    with download:
        assert not put(cache, 1)
        assert not put(cache, 0)
    assert cache.used_bytes() == shard_bytes(cache.folder) == 0
    assert put(cache, 1)


def test_an_open_file_survives_its_deletion(cache: ShardCache) -> None:
    put(cache, 0)
    file = cache.open(key(0))
    assert file is not None
    with file:
        for number in range(1, 6):
            put(cache, number)
        assert 0 not in held(cache)
        assert file.read() == content(0)


def snapshot(folder: Path, mine: tuple[str, ...]) -> dict[Path, bytes | str]:
    """Everything below `folder` that is not the cache's own."""
    return {
        path: str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and not path.name.startswith(mine)
    }


def test_strangers_survive_whatever_the_limit(tmp_path: Path) -> None:
    """Files of the user beside the cache's folder and in it, among them some with names as the cache gives them."""
    root = tmp_path / "mine"
    (root / "train").mkdir(parents=True)
    (root / "train/part-00000.parquet").write_bytes(content(0))
    (root / f"{key(50)}.parquet").write_bytes(content(50))
    with closing(ShardCache(root, 2 * SIZE)) as cache:
        put(cache, 0)
        folder = cache.folder
        (folder / "notes.txt").write_text("mine")
        (folder / "sub").mkdir()
        (folder / f"sub/{key(51)}.parquet").write_bytes(content(51))
        for name in (f"{key(52)}.parquet", f"{key(53)}.part", "part-00000.parquet", "x" * 64):
            (folder / name).write_bytes(content(52))
        (folder / f"{key(54)}.parquet").symlink_to(root / "train/part-00000.parquet")
        (folder / f"{key(55)}.part").symlink_to(root / "train/part-00000.parquet")
        mine = ("index.sqlite", "lock", MARKER, *(key(number) for number in range(20)))
        before = snapshot(tmp_path, mine)
        assert len(before) == 10
        for number in range(1, 20):
            assert put(cache, number)
        with closing(ShardCache(root, SIZE)) as small:
            for number in (3, 4):
                assert put(small, number)
            assert held(small) == [4]
            for number in (52, 53, 54, 55):
                with pytest.raises(FetchError, match="was not written by this cache; remove it, or set"):
                    small.begin(key(number), SIZE)
                assert small.open(key(number)) is None
                small.discard(key(number))
        assert snapshot(tmp_path, mine) == before


@pytest.mark.parametrize("name", ["parquet", "part"])
def test_a_link_in_a_shards_place_is_neither_followed_nor_deleted(cache: ShardCache, tmp_path: Path, name: str) -> None:
    target = tmp_path / "source"
    target.write_bytes(content(0))
    download = cache.begin(key(0), SIZE)
    assert download is not None
    with download:
        download.write(content(0))
        if name == "parquet":
            download.finish()
    path = cache.folder / f"{key(0)}.{name}"
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    assert cache.open(key(0)) is None
    with pytest.raises(FetchError, match="was not written by this cache"):
        put(cache, 0)
    for number in range(1, 9):
        put(cache, number)
    assert path.is_symlink()
    assert target.read_bytes() == content(0)


def test_a_name_taken_during_the_download_is_left_alone(cache: ShardCache) -> None:
    stranger = cache.folder / f"{key(0)}.parquet"
    download = cache.begin(key(0), SIZE)
    assert download is not None
    with download:
        download.write(content(0))
        stranger.write_text("mine")
        with pytest.raises(FetchError, match="was not written by this cache"):
            download.finish()
    assert stranger.read_text() == "mine"
    assert cache.used_bytes() == 0
    assert not list(cache.folder.glob("*.part"))


def test_a_name_taken_at_the_last_moment_is_left_alone(cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = cache.folder / f"{key(0)}.parquet"
    download = cache.begin(key(0), SIZE)
    assert download is not None
    with download:
        download.write(content(0))
        link = os.link

        def take_before_link(*names: Any, **options: Any) -> None:
            stranger.write_text("mine")
            link(*names, **options)

        monkeypatch.setattr(os, "link", take_before_link)
        with pytest.raises(FetchError, match="was not written by this cache"):
            download.finish()
    assert stranger.read_text() == "mine"
    assert cache.used_bytes() == 0
    assert not list(cache.folder.glob("*.part"))


def test_shards_get_their_names_where_there_are_no_hard_links(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert all(put(cache, number) for number in range(6))
    assert held(cache) == [2, 3, 4, 5]
    assert cache.used_bytes() == shard_bytes(cache.folder) == 4 * SIZE


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("survived", [0, 1])
def test_a_crash_while_a_shard_gets_its_name_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, survived: int
) -> None:
    """`survived` of the two steps were made after the first: listing it as whole, and dropping the other name."""

    class Killed(BaseException):
        pass

    link = os.link

    def kill(*_: object, **__: object) -> None:
        raise Killed

    def kill_after_link(*names: Any, **options: Any) -> None:
        link(*names, **options)
        raise Killed

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def crash_within(cache: ShardCache, crash: pytest.MonkeyPatch) -> None:
        download = cache.begin(key(0), SIZE)
        assert download is not None
        download.write(content(0))
        if survived:
            crash.setattr(Path, "unlink" if links else "rename", kill)
        if not links:
            crash.setattr(os, "link", no_links if survived else kill)
        elif not survived:
            crash.setattr(os, "link", kill_after_link)
        with suppress(Killed):
            download.finish()
            pytest.fail("it was to be killed")

    with closing(ShardCache(tmp_path, SIZE)) as cache, monkeypatch.context() as crash:
        crash_within(cache, crash)
    with closing(ShardCache(tmp_path, SIZE)) as cache:
        assert held(cache) == ([0] if links and survived else [])
        assert put(cache, 1)
        assert held(cache) == [1]
        assert shard_bytes(cache.folder) == SIZE
        assert put(cache, 0)


def test_a_strangers_part_survives_beside_a_whole_shard(cache: ShardCache) -> None:
    put(cache, 0)
    stranger = cache.folder / f"{key(0)}.part"
    stranger.write_text("mine")
    cache.discard(key(0))
    assert cache.used_bytes() == 0
    assert stranger.read_text() == "mine"


def test_a_download_that_cannot_be_locked_leaves_no_file(cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as broken:
        broken.setattr("pipeline.shards.shard_cache.fcntl", SimpleNamespace(flock=refuse, LOCK_EX=fcntl.LOCK_EX))
        with pytest.raises(FetchError, match="No locks available"):
            cache.begin(key(0), SIZE)
    assert not list(cache.folder.glob("*.part"))
    assert put(cache, 0)


def test_a_folder_marked_by_another_process_meanwhile_is_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / FOLDER
    list_folder = Path.iterdir

    def list_while_another_starts(path: Path) -> Iterator[Path]:
        monkeypatch.undo()
        with closing(ShardCache(tmp_path, SIZE)) as other:
            put(other, 0)
        return list_folder(path)

    folder.mkdir()
    monkeypatch.setattr(Path, "iterdir", list_while_another_starts)
    with closing(ShardCache(tmp_path, SIZE)) as cache:
        assert held(cache) == [0]


def test_a_mark_is_written_through_no_link_and_completed_after_a_crash(tmp_path: Path) -> None:
    for name, target in ((f"{MARKER}.tmp", "thesis.doc"), (MARKER, "thesis.doc"), (MARKER, "empty")):
        folder = tmp_path / f"{name}-{target}" / FOLDER
        folder.mkdir(parents=True)
        (tmp_path / "thesis.doc").write_text("mine")
        (tmp_path / "empty").touch()
        (folder / name).symlink_to(tmp_path / target)
        with pytest.raises((InputError, FetchError), match=r"set data\.cache_path"):
            ShardCache(folder.parent, SIZE)
        assert ((tmp_path / "thesis.doc").read_text(), (tmp_path / "empty").read_text()) == ("mine", "")
    folder = tmp_path / "crashed" / FOLDER
    folder.mkdir(parents=True)
    (folder / MARKER).write_bytes(MARK[:10])
    ShardCache(folder.parent, SIZE).close()
    assert (folder / MARKER).read_bytes() == MARK
    (folder / MARKER).write_bytes(b"")
    with pytest.raises(InputError, match="holds other things"):
        ShardCache(folder.parent, SIZE)


def test_a_folder_that_is_not_a_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / FOLDER).mkdir(parents=True)
    (tmp_path / "a" / FOLDER / "thesis.doc").write_text("")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / FOLDER).symlink_to(tmp_path / "a")
    for name, words in (("a", "holds other things"), ("b", "not a folder of its own")):
        with pytest.raises(InputError, match=f"{words}.*set data.cache_path"):
            ShardCache(tmp_path / name, SIZE)
    assert [path.name for path in (tmp_path / "a" / FOLDER).iterdir()] == ["thesis.doc"]


def test_a_name_that_is_no_hash_makes_no_file(cache: ShardCache, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not a SHA-256"):
        cache.begin("../../escaped", SIZE)
    assert not list(tmp_path.parent.glob("escaped*"))


def test_a_copy_that_changed_its_length_is_downloaded_again(cache: ShardCache) -> None:
    put(cache, 0)
    (cache.folder / f"{key(0)}.parquet").write_bytes(content(0)[:-1])
    assert cache.open(key(0)) is None
    assert put(cache, 0)
    assert held(cache) == [0]
    (cache.folder / f"{key(0)}.parquet").unlink()
    assert cache.open(key(0)) is None
    assert cache.used_bytes() == 0


def test_half_of_the_disk_is_the_limit_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(ShardCache(tmp_path, SIZE)) as cache:
        put(cache, 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=9 * SIZE, total=99 * SIZE))
    with closing(ShardCache(tmp_path)) as cache:
        assert cache.limit_bytes == 5 * SIZE


def test_a_full_disk_is_one_line_and_leaves_no_part(cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_full(descriptor: int, *_: object) -> FileIO:
        os.close(descriptor)
        return Path("/dev/full").open("wb", 0)

    with monkeypatch.context() as full:
        full.setattr(os, "fdopen", open_full)
        download = cache.begin(key(0), SIZE)
    assert download is not None

    def fill() -> None:
        with download:
            download.write(content(0))

    with pytest.raises(
        FetchError, match=r"nothing can be written .*; free some space, lower data\.cache_bytes"
    ) as caught:
        fill()
    assert "\n" not in str(caught.value)
    assert cache.used_bytes() == shard_bytes(cache.folder) == 0


def test_a_damaged_index_is_said(cache: ShardCache, tmp_path: Path) -> None:
    cache.close()
    (cache.folder / "index.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match=f"{FOLDER}: its index is damaged; remove that folder"):
        ShardCache(tmp_path, SIZE)


def hang_in_download(path: Path, started: multiprocessing.Queue) -> None:
    cache = ShardCache(path, 4 * SIZE)
    download = cache.begin(key(0), SIZE)
    assert download is not None
    download.write(content(0)[:400])
    started.put(True)
    signal.pause()


def test_a_living_download_is_left_alone_and_a_killed_one_cleaned_up(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    started = processes.Queue()
    child = processes.Process(target=hang_in_download, args=(tmp_path, started))
    child.start()
    started.get(timeout=60)
    with closing(ShardCache(tmp_path, 4 * SIZE)) as cache:
        part = cache.folder / f"{key(0)}.part"
        assert not put(cache, 0)
        for number in range(1, 6):
            assert put(cache, number)
        assert part.read_bytes() == content(0)[:400]
        assert cache.used_bytes() == 4 * SIZE
        child.kill()
        child.join()
        assert put(cache, 6)
        assert not part.exists()
        assert held(cache) == [3, 4, 5, 6]
        assert put(cache, 0)
        assert held(cache) == [0, 4, 5, 6]


def use_at_random(path: Path, seed: int, rounds: int, errors: multiprocessing.Queue) -> None:
    try:
        chance = random.Random(seed)
        with closing(ShardCache(path, 4 * SIZE)) as cache:
            for _ in range(rounds):
                number = chance.randrange(10)
                file = cache.open(key(number))
                if file is None:
                    put(cache, number)
                else:
                    with file:
                        assert file.read() == content(number)
                assert shard_bytes(cache.folder) <= 4 * SIZE
    except BaseException as error:
        errors.put(repr(error))
        raise


def test_processes_share_a_folder_within_its_limit(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    errors = processes.Queue()
    children = [processes.Process(target=use_at_random, args=(tmp_path, seed, 60, errors)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert errors.empty(), errors.get()
    assert [child.exitcode for child in children] == [0, 0, 0]
    with closing(ShardCache(tmp_path, 4 * SIZE)) as cache:
        assert cache.used_bytes() == shard_bytes(cache.folder) > 0
        assert not list(cache.folder.glob("*.part"))
