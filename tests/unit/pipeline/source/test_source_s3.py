"""Sources in an S3-compatible store, served on this machine."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.preprocess.command import PreprocessConfig, preprocess
from pipeline.source.find import find_sources
from tests.logs import folder_bytes, log_lines
from tests.store import Store, serve

pytest.importorskip("moto.server", reason="moto serves the store; it is part of the extra `dev`")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with serve("logs") as store:
        yield store


def test_logs_in_a_store_give_the_same_shards_as_local_ones(store: Store, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for day, pack in enumerate((bytes, gzip.compress, bytes)):
        content = pack(b"\n".join(log_lines(150, seed=day)))
        (tmp_path / f"log/day_{day}").write_bytes(content)
        store.write(f"logs/days/day_{day}", content)
    store.write("logs/days/README.md", b"no log")
    outputs = []
    for number, source in enumerate((tmp_path / "log", store.uri("logs/days"), store.uri("logs/days/day_*"))):
        out = tmp_path / f"data{number}"
        manifest = preprocess(PreprocessConfig(sources=(str(source),), out=out, rows_per_shard=40)).manifest
        assert manifest.rows == 450
        outputs.append({name: content for name, content in folder_bytes(out).items() if name != "manifest.json"})
    assert outputs[0] == outputs[1] == outputs[2]


def test_credentials_are_neither_stored_nor_shown(store: Store, tmp_path: Path) -> None:
    lines = log_lines(50)
    lines[9] = b"rejected"
    store.write("logs/day_0.tsv", b"\n".join(lines))
    config = PreprocessConfig(sources=(store.uri("logs/day_0.tsv"),), out=tmp_path / "data", max_rejects="1")
    preprocess(config)
    assert preprocess(config).nothing_to_do
    assert all(b"secret" not in content for content in folder_bytes(tmp_path / "data").values())
    assert (tmp_path / "data/rejects/00000-day_0.tsv.tsv").read_bytes().startswith(b"s3://logs/day_0.tsv?scheme=http")
    with pytest.raises(InputError, match="s3://logs/none") as caught:
        find_sources([store.uri("logs/none")])
    assert "secret" not in str(caught.value)


def test_a_changed_object_is_noticed(store: Store, tmp_path: Path) -> None:
    store.write("logs/day_0.tsv", b"\n".join(log_lines(50)))
    config = PreprocessConfig(sources=(store.uri("logs/day_0.tsv"),), out=tmp_path / "data")
    preprocess(config)
    store.write("logs/day_0.tsv", b"\n".join(log_lines(60)))
    with pytest.raises(InputError, match=r"day_0\.tsv.* had [\d,]+ bytes when"):
        preprocess(config)


def test_a_store_that_does_not_answer_is_said_in_one_line() -> None:
    uri = "s3://a:b@logs/day_0?scheme=http&endpoint_override=127.0.0.1:1&connect_timeout=1&request_timeout=1"
    with pytest.raises((StorageError, InputError)) as caught:
        find_sources([uri])
    assert "\n" not in str(caught.value)
    assert "s3://logs/day_0" in str(caught.value)
