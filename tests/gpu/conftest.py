"""The devices that tests of a run's behaviour are made on: the CPU everywhere, so that they are known to work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.runs import write_data


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rows") / "data")
