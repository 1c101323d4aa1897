"""Preprocessing under kill -9, a full disk, damaged bits and truncated sources: the outcome is always right or said."""

from __future__ import annotations

import gzip
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.device import DataConfig, open_feed
from pipeline.errors import InputError, StorageError
from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.rows import PairSpans
from pipeline.shards import Manifest, verify_data
from tests.faults.nursery import Nursery
from tests.logs import folder_bytes, log_lines, write_log

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("ALPHASTREAM_FAULT_TRIALS", "12"))
FLIPS = int(os.environ.get("ALPHASTREAM_FAULT_FLIPS", "80"))
ROWS_PER_SHARD = 500


def make_log(folder: Path) -> Path:
    """Days of which one is compressed and one has rejected lines."""
    folder.mkdir()
    write_log(folder / "day_0.tsv", 1700, seed=0)
    (folder / "day_1.tsv.gz").write_bytes(gzip.compress(b"\n".join(log_lines(1300, seed=1)), mtime=0))
    lines = log_lines(900, seed=2)
    lines[100] = lines[700] = b"no row"
    (folder / "day_2.tsv").write_bytes(b"\n".join(lines))
    return folder


def config_of(log: Path, out: Path) -> PreprocessConfig:
    return PreprocessConfig(sources=(str(log),), out=out, rows_per_shard=ROWS_PER_SHARD, max_rejects="9")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return make_log(tmp_path / "log")


@pytest.fixture
def nursery(log: Path, tmp_path: Path) -> Iterator[Nursery]:
    nursery = Nursery(log, tmp_path / "warm")
    yield nursery
    nursery.close()


def test_killed_anywhere_and_run_again_gives_the_same_bytes(log: Path, tmp_path: Path, nursery: Nursery) -> None:
    nursery.run(log, tmp_path / "first", 0, "before")
    began = time.monotonic()
    code, calls = nursery.run(log, tmp_path / "whole", 0, "before")
    microseconds = int(1e6 * (time.monotonic() - began))
    assert code == 0
    expected = folder_bytes(tmp_path / "whole")
    chance = random.Random(20)
    unfinished = 0
    for trial in range(KILLS):
        out = tmp_path / f"out-{trial}"
        while True:  # killed again and again, further on each time
            moment = chance.choice(["before", "after", "time"])
            code, _ = nursery.run(log, out, chance.randint(1, microseconds if moment == "time" else calls), moment)
            assert code in (0, -signal.SIGKILL)
            listed = (out / "manifest.json").exists()
            if listed:
                assert not verify_data(out).damaged
            unfinished += not listed
            if listed or chance.random() < 0.5:
                break
        preprocess(config_of(log, out))
        assert folder_bytes(out) == expected, f"trial {trial}"
    assert unfinished > 0


def trained_on(data: Path) -> list[torch.Tensor]:
    """Everything that one epoch over each split would hand to the model, from the stream that training uses."""
    tensors = []
    manifest = Manifest.load(data)
    for split, found in manifest.splits.items():
        config = DataConfig(path=str(data), batch_rows=50, shuffle_row_groups=4, read_threads=1)
        spans = PairSpans(rows=found.rows, batch_rows=50, probe_rows=50, pairing=config.pairing)
        with open_feed(config, manifest, table_rows=1000, device=torch.device("cpu"), split=split) as feed:
            for pair in itertools.islice(feed, spans.steps_per_epoch):
                tensors += [tensor.clone() for batch in (pair.b1, pair.b2) for tensor in batch]
    return tensors


def outcome_of(data: Path) -> tuple[list[torch.Tensor], str]:
    """What was trained on, or why nothing was."""
    try:
        return trained_on(data), ""
    except StorageError as error:
        return [], str(error)


def test_every_flipped_bit_is_found_and_named_and_never_trained_on(log: Path, tmp_path: Path) -> None:
    """`verify` names the file; the stream names it too, or does not look at that byte and gives the right rows."""
    data = tmp_path / "data"
    preprocess(config_of(log, data))
    content, expected = folder_bytes(data), trained_on(data)
    chance = random.Random(21)
    outcomes = Counter[str]()
    for trial in range(FLIPS):
        # One in four in the manifest and one in twenty in the rejects, which are small beside the shards.
        kind = "manifest.json" if trial % 4 == 0 else "rejects/" if trial % 20 == 1 else ".parquet"
        name = chance.choice([name for name in sorted(content) if kind in name])
        damaged = bytearray(content[name])
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        (data / name).write_bytes(damaged)
        if name == "manifest.json":
            for use in (verify_data, trained_on):
                with pytest.raises(StorageError, match=r"manifest\.json is damaged"):
                    use(data)
        else:
            (found,) = verify_data(data).lines()
            assert found.startswith(f"{name} ")
            named = rf"{name}: row group \d+ cannot be read \(.*run `alphastream verify`"
            rows, error = outcome_of(data)
            if error:
                assert re.search(named, error)
                outcomes["refused"] += 1
            else:  # rejects, a footer, or what a page's header says twice: nothing that rows depend on
                assert len(rows) == len(expected)
                assert all(map(torch.equal, rows, expected))
                outcomes["harmless"] += 1
        (data / name).write_bytes(content[name])
    assert verify_data(data).whole
    assert outcomes["refused"] > outcomes["harmless"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("a small file system needs root on Linux and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_in_one_line_and_the_run_continues_after(small_disk: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 3000)
    preprocess(config_of(log, tmp_path / "whole"))
    ballast = small_disk / "ballast"
    for kibibytes in (3071, 2950, 2600, 2200):
        out = small_disk / "data"
        ballast.write_bytes(bytes(kibibytes << 10))
        with pytest.raises(StorageError, match=r"No space left on device.*then run the same command again") as caught:
            preprocess(config_of(log, out))
        assert "\n" not in str(caught.value)
        assert not (out / "manifest.json").exists()
        ballast.unlink()
    assert preprocess(config_of(log, small_disk / "data")).resumed_rows > 0
    assert folder_bytes(small_disk / "data") == folder_bytes(tmp_path / "whole")


def test_a_truncated_gzip_lists_nothing_and_a_whole_one_starts_anew(tmp_path: Path) -> None:
    packed = gzip.compress(b"\n".join(log_lines(3000)), mtime=0)
    log = tmp_path / "log.tsv.gz"
    log.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"log\.tsv\.gz: the compressed file is truncated or damaged"):
        preprocess(config_of(log, tmp_path / "data"))
    assert not (tmp_path / "data/manifest.json").exists()
    log.write_bytes(packed)
    assert preprocess(config_of(log, tmp_path / "data")).rows == 3000
