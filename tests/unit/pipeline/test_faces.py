"""The worked example at the head of a room does what it says, with the tiny data folder as `data`."""

from __future__ import annotations

import doctest
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pipeline.device
import pipeline.rows
import pipeline.shards
from pipeline.shards import Manifest
from pipeline.shards.shard_files import LocalShards
from tests.tiny_data import TINY


@pytest.mark.parametrize("room", [pipeline.shards, pipeline.rows, pipeline.device])
def test_the_example_of_a_room_does_what_it_says(
    room: ModuleType, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_data.parent)
    shards = Manifest.load("data").splits["train"].shards
    names = {name: getattr(room, name) for name in room.__all__}
    given = {"torch": torch, "Manifest": Manifest, "shards": shards, "log_format": TINY}
    files = LocalShards(tiny_data, shards)
    example = doctest.DocTestParser().get_doctest(
        room.__doc__ or "", {**names, **given, "files": files}, room.__name__, room.__file__, 0
    )
    runner = doctest.DocTestRunner()
    runner.run(example, clear_globs=False)
    assert runner.tries >= 2
    assert runner.failures == 0
    if "reader" in example.globs:
        example.globs["reader"].close()
