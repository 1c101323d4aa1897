"""Continuing: what an earlier call finished is taken as it is, and found out where it is not whole any more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.preprocess import PreprocessConfig, Summary, preprocess
from pipeline.shards import Manifest
from tests.logs import folder_bytes, log_lines, write_log


def run(out: Path, source: Path, **options: Any) -> Summary:
    return preprocess(PreprocessConfig(sources=(str(source),), out=out, **options))


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@pytest.fixture
def log_with_a_reject(tmp_path: Path) -> Path:
    lines = log_lines(100)
    lines[50] = b"rejected"
    (tmp_path / "log.tsv").write_bytes(joined(lines))
    return tmp_path / "log.tsv"


def interrupted(tmp_path: Path, log: Path) -> Path:
    """A folder in which all parts are done and nothing is listed: the rejected line was not allowed."""
    with pytest.raises(InputError, match="1 of 100 lines"):
        run(tmp_path / "data", log, rows_per_shard=10, max_rejects="0")
    return tmp_path / "data"


def vanish(path: Path) -> None:
    path.unlink()


def shrink(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [vanish, shrink, empty])
@pytest.mark.parametrize(
    "name",
    [
        "shards/00000-train-00003.parquet",
        "counts/00000-train-00003.counts",
        "rejects/00000-train-00005.tsv",
        "done/00000-train-00003.json",
    ],
)
def test_a_part_whose_files_are_not_whole_is_encoded_again(
    tmp_path: Path, log_with_a_reject: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """The log, its line 51 rejected, is ten parts of ten lines each."""
    run(tmp_path / "whole", log_with_a_reject, rows_per_shard=10, max_rejects="1")
    data = interrupted(tmp_path, log_with_a_reject)
    damage(data / ".work" / name)
    said: list[str] = []
    config = PreprocessConfig(
        sources=(str(log_with_a_reject),), out=data, rows_per_shard=10, max_rejects="1", workers=1
    )
    done = preprocess(config, warn=said.append)
    assert (done.rows, done.resumed_rows) == (99, 99 - (9 if "rejects" in name else 10))
    assert folder_bytes(data) == folder_bytes(tmp_path / "whole")
    if name.startswith("done") and damage is vanish:
        assert not said  # a part that was never done looks the same
    else:
        (line,) = said
        assert name in line
        assert line.endswith("; the lines it was made from are encoded again")


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"{}", b"[]"])
def test_a_plan_that_cannot_be_read_is_said_and_everything_encoded_again(
    tmp_path: Path, log_with_a_reject: Path, content: bytes
) -> None:
    run(tmp_path / "whole", log_with_a_reject, rows_per_shard=10, max_rejects="1")
    data = interrupted(tmp_path, log_with_a_reject)
    (data / ".work/plan.json").write_bytes(content)
    said: list[str] = []
    config = PreprocessConfig(sources=(str(log_with_a_reject),), out=data, rows_per_shard=10, max_rejects="1")
    assert preprocess(config, warn=said.append).resumed_rows == 0
    assert said == [f"{data}/.work/plan.json is missing or damaged; everything is encoded again"]
    assert folder_bytes(data) == folder_bytes(tmp_path / "whole")


def test_a_shard_that_had_its_final_name_already_is_found_or_encoded_again(
    tmp_path: Path, log_with_a_reject: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between naming the shards and listing them; one of them is lost then."""
    run(tmp_path / "whole", log_with_a_reject, rows_per_shard=10, max_rejects="1")
    data = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(data, log_with_a_reject, rows_per_shard=10, max_rejects="1")
    assert len(list((data / "train").iterdir())) == 8
    (data / "train/part-00002.parquet").unlink()
    shrink(data / "train/part-00007.parquet")
    said: list[str] = []
    config = PreprocessConfig(sources=(str(log_with_a_reject),), out=data, rows_per_shard=10, max_rejects="1")
    assert preprocess(config, warn=said.append).resumed_rows == 79
    assert "train/part-00002.parquet is missing (and 1 more like it)" in said[0]
    assert folder_bytes(data) == folder_bytes(tmp_path / "whole")


WRONG_FORMAT = """
columns = ["click", "n"]
label = "click"
dense = ["n"]
sparse = []
bucket_sizes = []
"""


def test_a_wrong_format_that_made_no_row_does_not_block_the_right_one(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 100)
    (tmp_path / "wrong.toml").write_text(WRONG_FORMAT)
    with pytest.raises(InputError, match="100 of 100 lines"):
        run(tmp_path / "data", log, format=str(tmp_path / "wrong.toml"), rows_per_shard=7)
    run(tmp_path / "data", log, rows_per_shard=10)
    run(tmp_path / "whole", log, rows_per_shard=10)
    assert folder_bytes(tmp_path / "data") == folder_bytes(tmp_path / "whole")


def test_a_format_that_made_rows_blocks_another(tmp_path: Path, log_with_a_reject: Path) -> None:
    data = interrupted(tmp_path, log_with_a_reject)
    before = folder_bytes(data)
    with pytest.raises(InputError, match="rows_per_shard 10 instead of 20"):
        run(data, log_with_a_reject, rows_per_shard=20, max_rejects="1")
    assert folder_bytes(data) == before


def test_records_of_versions_that_kept_no_sizes_are_continued(tmp_path: Path, log_with_a_reject: Path) -> None:
    data = interrupted(tmp_path, log_with_a_reject)
    for path in (data / ".work/done").iterdir():
        record = json.loads(path.read_bytes())
        del record["counts_bytes"], record["rejects_bytes"]
        path.write_text(json.dumps(record))
    empty(data / ".work/counts/00000-train-00003.counts")
    done = run(data, log_with_a_reject, rows_per_shard=10, max_rejects="1")
    assert (done.rows, done.resumed_rows) == (99, 89)


def test_a_name_that_is_not_utf8_may_have_rejects(tmp_path: Path) -> None:
    log = Path(os.fsdecode(os.fsencode(tmp_path) + b"/day_\xff.tsv"))
    log.write_bytes(joined([*log_lines(50), b"rejected"]))
    run(tmp_path / "data", log, max_rejects="1")
    (rejects,) = (tmp_path / "data/rejects").iterdir()
    assert rejects.read_bytes() == b"\t".join((os.fsencode(log), b"51", b"1 fields instead of 40", b"rejected\n"))
