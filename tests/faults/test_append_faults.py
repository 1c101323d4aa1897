"""Appending under kill -9 and on a full disk: the folder is as it was, or has the generation whole, and never half."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.shards import Manifest, verify_data
from tests.faults.nursery import Nursery
from tests.logs import folder_bytes, log_lines, write_log

KILLS = int(os.environ.get("ALPHASTREAM_FAULT_TRIALS", "6"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of one day."""
    log = write_log(tmp_path / "day_0.tsv", 1700, seed=0)
    preprocess(PreprocessConfig(sources=(str(log),), out=tmp_path / "data", rows_per_shard=500))
    return tmp_path / "data"


@pytest.fixture
def additions(tmp_path: Path) -> list[Path]:
    """A plain day with rejected lines, and a compressed one."""
    lines = log_lines(1300, seed=1)
    lines[100] = lines[700] = b"no row"
    plain, packed = tmp_path / "day_1.tsv", tmp_path / "day_2.tsv.gz"
    plain.write_bytes(b"\n".join(lines))
    packed.write_bytes(gzip.compress(b"\n".join(log_lines(1400, seed=2)), mtime=0))
    return [plain, packed]


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    nursery = Nursery(write_log(tmp_path / "warm.tsv", 600, seed=9), tmp_path / "warm")
    yield nursery
    nursery.close()


def content(data: Path) -> dict[str, Any]:
    """Every file of a folder, the manifest without what depends on the moment."""
    files: dict[str, Any] = folder_bytes(data)
    manifest = json.loads(files.pop("manifest.json"))
    manifest.pop("sha256")
    for generation in manifest.get("generations", ()):
        generation.pop("created")
    files.pop(".append.lock", None)
    return {**files, "manifest.json": manifest}


def copied(data: Path, to: Path) -> Path:
    shutil.copytree(data, to)
    return to


def test_killed_anywhere_an_addition_is_there_or_not(
    tmp_path: Path, data: Path, additions: list[Path], nursery: Nursery
) -> None:
    states = [content(data)]
    whole = copied(data, tmp_path / "whole")
    for log in additions:
        began = time.monotonic()
        code, calls = nursery.run(log, whole, 0, "before", append=True)
        microseconds = int(1e6 * (time.monotonic() - began))
        assert code == 0
        states.append(content(whole))
    chance = random.Random(31)
    kept = {name: file for name, file in states[0].items() if name.endswith(".parquet")}
    unfinished = 0
    for trial in range(KILLS):
        out = copied(data, tmp_path / f"out-{trial}")
        for index, log in enumerate(additions):
            while True:  # killed again and again, further on each time
                moment = chance.choice(["before", "after", "time"])
                fatal = chance.randint(1, microseconds if moment == "time" else calls)
                code, _ = nursery.run(log, out, fatal, moment, append=True)
                assert code in (0, -signal.SIGKILL)
                assert not verify_data(out).damaged
                listed = len(Manifest.load(out).generations) - 1
                assert listed in (index, index + 1)
                unfinished += listed == index
                if listed > index or chance.random() < 0.5:
                    break
            config = PreprocessConfig(sources=(str(log),), out=out, append=True, max_rejects="9")
            assert preprocess(config).nothing_to_do == (listed > index)
            found = content(out)
            if listed == index:  # whoever finds nothing to do need not find the waste of the one that was killed
                assert found == states[index + 1], f"trial {trial}"
            assert {name: found[name] for name in kept} == kept
            assert {**states[index + 1], **found} == {**found, **states[index + 1]}, f"trial {trial}"
            assert verify_data(out).lines() == []
    assert unfinished > 0
