from __future__ import annotations

import subprocess
import sys

import pytest

import pipeline.device
import pipeline.rows
from pipeline.device import DataConfig
from pipeline.errors import InputError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_rows": 0}, "data.batch_rows = 0"),
        ({"read_threads": -1}, "data.read_threads = -1"),
        ({"shuffle": "rwos"}, "data.shuffle = 'rwos'; choose one of none, files, rows"),
        ({"pairing": "none"}, "data.pairing"),
        ({"feed": "x"}, "choose one of ring, dali"),
        ({"damaged": "ignore"}, "choose one of fail, skip"),
    ],
)
def test_configuration_is_checked_when_built(changes, words):
    with pytest.raises(InputError, match=words):
        DataConfig(path="data", **changes)


def test_configuration_needs_no_library_that_is_slow_to_import():
    program = "import sys; from pipeline.device import DataConfig; DataConfig(path='data'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "pipeline.device.config" in done.stdout.split()
    assert not {"torch", "torchdata", "numba", "pyarrow", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize("room", [pipeline.device, pipeline.rows])
def test_a_room_has_every_name_of_its_face_and_no_other(room):
    assert all(getattr(room, name).__module__.startswith((room.__name__, "typing", "types")) for name in room.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = room.nothing
