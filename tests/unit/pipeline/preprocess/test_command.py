"""Preprocessing as a whole: every line goes where it belongs, once, whatever the workers, sources and interruptions."""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard
from filelock import FileLock

from pipeline.errors import InputError
from pipeline.preprocess.command import PreprocessConfig, Progress, Summary, forecast, preprocess
from pipeline.preprocess.plan import LAST_DAY_TEST_SHARE, day_segments
from pipeline.schema import CRITEO, SPLITS
from pipeline.shards.manifest import Manifest
from tests.log_reference import Row, read_log
from tests.logs import folder_bytes, log_lines, write_log


def run(out: Path, *sources: Path | str, **options: Any) -> Summary:
    return preprocess(PreprocessConfig(sources=tuple(map(str, sources)), out=out, **options))


def rows_of(data: Path, split: str) -> list[Row]:
    """The split's rows in shard order, as the reference writes them."""
    manifest = Manifest.load(data)
    rows = []
    for shard in manifest.splits[split].shards:
        table = pq.read_table(data / shard.path)
        assert table.num_rows == shard.rows == sum(shard.row_groups)
        rows += [
            Row(values[0], tuple(values[1:14]), tuple(values[14:]))
            for values in zip(*(column.to_pylist() for column in table.columns), strict=True)
        ]
    return rows


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def test_a_single_file_is_split_in_time(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 105)
    expected, _ = read_log(log.read_bytes(), CRITEO)
    manifest = run(tmp_path / "data", log, rows_per_shard=20).manifest
    assert [manifest.splits[name].rows for name in SPLITS] == [85, 10, 10]
    assert [shard.rows for shard in manifest.splits["train"].shards] == [20, 20, 20, 20, 5]
    assert rows_of(tmp_path / "data", "train") == expected[:85]
    assert rows_of(tmp_path / "data", "validation") == expected[85:95]
    assert rows_of(tmp_path / "data", "test") == expected[95:]
    assert not (tmp_path / "data/.work").exists()


def test_several_files_are_split_by_day(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / f"day_{day}", rows, seed=day) for day, rows in ((0, 30), (2, 41), (10, 100))]
    run(tmp_path / "data", *logs, rows_per_shard=25)
    first, second, last = (read_log(log.read_bytes(), CRITEO)[0] for log in logs)
    test_rows = int(100 * LAST_DAY_TEST_SHARE)
    assert rows_of(tmp_path / "data", "train") == first + second
    assert rows_of(tmp_path / "data", "test") == last[:test_rows]
    assert rows_of(tmp_path / "data", "validation") == last[test_rows:]


def test_day_23_is_split_as_algoperf_does() -> None:
    test, validation = day_segments(last=True, lines=lambda: 178_274_637)
    assert (test.first_line, test.stop_line, validation.first_line) == (0, 95_000_000, 95_000_000)


def test_the_output_depends_on_the_plan_alone(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / f"day_{day}", 150, seed=day) for day in range(3)]
    outputs = []
    for workers in (1, 2, 5):
        run(tmp_path / f"data{workers}", *logs, rows_per_shard=16, workers=workers)
        outputs.append(folder_bytes(tmp_path / f"data{workers}"))
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("kind", ["gz", "zst", "uri", "stdin", "crlf", "no final newline"])
def test_the_rows_are_the_same_whatever_the_source(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_log(tmp_path / "log.tsv", 300)
    content = plain.read_bytes()
    other: Path | str = tmp_path / "other.tsv"
    packed = {
        "gz": gzip.compress(content),
        "zst": zstandard.ZstdCompressor().compress(content),
        "crlf": content.replace(b"\n", b"\r\n"),
        "no final newline": content[:-1],
    }.get(kind, content)
    (tmp_path / "other.tsv").write_bytes(packed)
    if kind == "uri":
        other = (tmp_path / "other.tsv").as_uri()
    if kind == "stdin":
        other = "-"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    options: dict[str, Any] = {"rows_per_shard": 70, "split": "validation" if kind == "stdin" else "auto"}
    run(tmp_path / "data", plain, **options)
    run(tmp_path / "data2", other, **options)
    shards, others = folder_bytes(tmp_path / "data"), folder_bytes(tmp_path / "data2")
    assert shards.keys() == others.keys()
    named = {"manifest.json"} | ({"distinct/values.hll"} if kind == "stdin" else set())  # by size, time, beginning
    assert all(shards[name] == others[name] for name in shards.keys() - named)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("block_bytes", [1000, 1777, 4096])
def test_lines_are_whole_wherever_blocks_end(
    tmp_path: Path, pack: Callable[[bytes], bytes], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.source.blocks.BLOCK_BYTES", block_bytes)
    lines = log_lines(120)
    lines[77] = b"rejected"
    (tmp_path / "log.tsv").write_bytes(pack(joined(lines)))
    run(tmp_path / "data", tmp_path / "log.tsv", rows_per_shard=50, split="test", max_rejects="1")
    assert rows_of(tmp_path / "data", "test") == read_log(joined(lines), CRITEO)[0]
    (rejects,) = (tmp_path / "data/rejects").iterdir()
    assert rejects.read_bytes().split(b"\t")[1] == b"78"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_bytes_without_lines_are_no_log(
    tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.source.blocks.BLOCK_BYTES", 1000)
    (tmp_path / "log.tsv").write_bytes(pack(bytes(range(33, 127)) * 100))
    with pytest.raises(InputError, match=r"log\.tsv has no line end within 1,000 bytes; is it a log"):
        run(tmp_path / "data", tmp_path / "log.tsv", split="test")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("rows", [20, 21, 22])
def test_a_last_line_without_its_end_is_a_line(tmp_path: Path, pack: Callable[[bytes], bytes], rows: int) -> None:
    content = b"\n".join(log_lines(rows))
    (tmp_path / "log.tsv").write_bytes(pack(content))
    run(tmp_path / "data", tmp_path / "log.tsv", rows_per_shard=10, split="test")
    assert rows_of(tmp_path / "data", "test") == read_log(content, CRITEO)[0]


def test_rejected_lines_are_kept_with_their_reason(tmp_path: Path) -> None:
    lines = log_lines(60)
    lines[10] += b"\t0"
    lines[40] = lines[40].rsplit(b"\t", 1)[0] + b"\tnothexad"
    lines[41] = b""
    log = tmp_path / "log.tsv"
    log.write_bytes(joined(lines))
    manifest = run(tmp_path / "data", log, max_rejects="5%", rows_per_shard=20).manifest
    assert manifest.rejected_rows == 3
    assert [(rejects.path, rejects.lines) for rejects in manifest.rejects] == [("rejects/00000-log.tsv.tsv", 3)]
    assert manifest.rows == 57
    assert rows_of(tmp_path / "data", "train") == read_log(joined(lines[:48]), CRITEO)[0]
    kept = [line.split(b"\t", 3) for line in (tmp_path / "data/rejects/00000-log.tsv.tsv").read_bytes().splitlines()]
    assert [(int(number), why.decode(), line) for _, number, why, line in kept] == [
        (11, "41 fields instead of 40", lines[10]),
        (41, "C26 'nothexad' is not hexadecimal", lines[40]),
        (42, "empty line", b""),
    ]
    assert kept[0][0] == str(log).encode()


@pytest.mark.parametrize("allowed", ["1", "0.1%", "0.01", "0"])
def test_too_many_rejects_name_the_first_lines_and_list_nothing(tmp_path: Path, allowed: str) -> None:
    lines = log_lines(100)
    lines[3] = lines[3].rsplit(b"\t", 1)[0]
    lines[70] = b"?" + lines[70]
    (tmp_path / "log.tsv").write_bytes(joined(lines))
    with pytest.raises(InputError) as caught:
        run(tmp_path / "data", tmp_path / "log.tsv", max_rejects=allowed, rows_per_shard=25)
    message = str(caught.value)
    assert f"2 of 100 lines read cannot be used, more than --max-rejects {allowed} allows" in message
    assert "log.tsv:4: 39 fields instead of 40; log.tsv:71: label '?" in message
    assert f"(all are in {tmp_path / 'data/.work/rejects'})" in message
    assert "\n" not in message
    assert not (tmp_path / "data/manifest.json").exists()
    assert run(tmp_path / "data", tmp_path / "log.tsv", max_rejects="2", rows_per_shard=25).rows == 98


def test_a_hopeless_log_is_given_up_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.preprocess.assignment.HOPELESS_AFTER_LINES", 100)
    (tmp_path / "log.tsv").write_bytes(b"what is this\n" * 1000 + joined(log_lines(10)))
    seen: list[Progress] = []
    config = PreprocessConfig(sources=(str(tmp_path / "log.tsv"),), out=tmp_path / "data", rows_per_shard=50, workers=1)
    with pytest.raises(InputError, match=r"log\.tsv:1: 1 fields instead of 40"):
        preprocess(config, report=seen.append)
    assert len(list((tmp_path / "data/.work/done").iterdir())) == 2


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 50)
    assert not run(tmp_path / "data", log).nothing_to_do
    before = folder_bytes(tmp_path / "data")
    again = run(tmp_path / "data", log, workers=1, max_rejects="7")
    assert (again.nothing_to_do, again.rows) == (True, 50)
    assert folder_bytes(tmp_path / "data") == before


def test_another_plan_is_not_mixed_in(tmp_path: Path) -> None:
    log, other = write_log(tmp_path / "log.tsv", 50), write_log(tmp_path / "other.tsv", 50, seed=1)
    run(tmp_path / "data", log)
    remedy = "; give another --out, or remove .*data to make it anew"
    with pytest.raises(InputError, match="rows_per_shard 262144 instead of 7" + remedy):
        run(tmp_path / "data", log, rows_per_shard=7)
    with pytest.raises(InputError, match="compression lz4 instead of zstd" + remedy):
        run(tmp_path / "data", log, compression="zstd")
    with pytest.raises(InputError, match=r"was made from .*log\.tsv too, which is not among the sources now" + remedy):
        run(tmp_path / "data", other)
    with pytest.raises(InputError, match=r"was made without .*other\.tsv" + remedy):
        run(tmp_path / "data", log, other)
    os.utime(log, ns=(1, 1))
    with pytest.raises(InputError, match=r"log\.tsv was modified since .*data was begun" + remedy):
        run(tmp_path / "data", log)
    log.write_bytes(log.read_bytes() * 2)
    with pytest.raises(
        InputError, match=r"log\.tsv had [\d,]+ bytes when .*data was begun and has [\d,]+ now" + remedy
    ):
        run(tmp_path / "data", log)


def test_the_order_given_is_the_order_and_stays_it(tmp_path: Path) -> None:
    train, test = write_log(tmp_path / "train.tsv", 40), write_log(tmp_path / "test.tsv", 20, seed=1)
    run(tmp_path / "data", train, test)
    expected, others = (read_log(log.read_bytes(), CRITEO)[0] for log in (train, test))
    assert rows_of(tmp_path / "data", "train") == expected
    assert rows_of(tmp_path / "data", "test") + rows_of(tmp_path / "data", "validation") == others
    assert run(tmp_path / "data", train, test).nothing_to_do
    with pytest.raises(InputError) as caught:
        run(tmp_path / "data", test, train)
    assert str(caught.value) == (
        f"{tmp_path / 'data'} was made from the same files in another order (train.tsv, test.tsv); give them in that "
        "order to continue, or another --out"
    )


def test_another_format_is_named_by_what_differs(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 50)
    run(tmp_path / "data", log)
    for options, why in (
        ({"format": "criteo-kaggle"}, "name: 'criteo' instead of 'criteo-kaggle'"),
        ({"bucket_sizes": "C2=7"}, "bucket_sizes: 39043 instead of 7, place 2"),
    ):
        with pytest.raises(InputError, match=f"was made with another format .{why}.; give another --out"):
            run(tmp_path / "data", log, **options)


def test_a_folder_in_which_nothing_is_finished_takes_another_plan(tmp_path: Path) -> None:
    log = tmp_path / "log.tsv.gz"
    log.write_bytes(gzip.compress(joined(log_lines(50)))[:-9])
    with pytest.raises(InputError, match="truncated"):
        run(tmp_path / "data", log)
    log.write_bytes(gzip.compress(joined(log_lines(50))))
    assert run(tmp_path / "data", log, rows_per_shard=10).rows == 50


def test_a_source_that_changes_during_the_run_is_noticed(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 50)
    config = PreprocessConfig(sources=(str(log),), out=tmp_path / "data")
    with pytest.raises(InputError, match=r"log\.tsv changed while it was read"):
        preprocess(config, report=lambda _: os.utime(log, ns=(1, 1)))
    assert not (tmp_path / "data/manifest.json").exists()


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    for ending, pack in (("", bytes), (".gz", gzip.compress)):
        for day in range(2):
            (tmp_path / f"day_{day}{ending}").write_bytes(pack(joined(log_lines(200, day))))
        sources = [tmp_path / f"day_{day}{ending}" for day in range(2)]
        run(tmp_path / f"whole{ending}", *sources, rows_per_shard=20)

        def interrupt(progress: Progress) -> None:
            if progress.rows > 100:
                raise KeyboardInterrupt

        out = tmp_path / f"cut{ending}"
        config = PreprocessConfig(sources=tuple(map(str, sources)), out=out, rows_per_shard=20, workers=1)
        with pytest.raises(KeyboardInterrupt):
            preprocess(config, report=interrupt)
        assert not (out / "manifest.json").exists()
        preprocess(config)
        assert folder_bytes(out) == folder_bytes(tmp_path / f"whole{ending}")


def test_standard_input_is_read_again_to_continue_and_must_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = log_lines(100)
    lines[50] = b"rejected"

    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    give(joined(lines))
    with pytest.raises(InputError, match="1 of 100 lines"):
        run(tmp_path / "data", "-", rows_per_shard=30)
    give(joined(log_lines(100, seed=9)))
    with pytest.raises(InputError, match=r"standard input is not what .*data was begun from; give another --out"):
        run(tmp_path / "data", "-", rows_per_shard=30, max_rejects="1")
    give(joined(lines))
    done = run(tmp_path / "data", "-", rows_per_shard=30, max_rejects="1")
    assert (done.rows, done.resumed_rows) == (99, 99)


def test_standard_input_without_a_byte_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(
        InputError, match=r"standard input \(-\) is empty or closed; pipe a log into it, or name a file"
    ):
        run(tmp_path / "data", "-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match=r"standard input \(-\) is closed; pipe a log into it, or name a file"):
        run(tmp_path / "data", "-")


def test_foreign_bytes_on_standard_input_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"PAR1\x15\x04")))
    with pytest.raises(InputError, match="standard input is a Parquet file; export it as delimited text"):
        run(tmp_path / "data", "-")


def test_finished_shards_are_not_encoded_again(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 100)
    lines = log.read_bytes().splitlines()
    lines[50] = b"rejected"
    log.write_bytes(joined(lines))
    with pytest.raises(InputError):
        run(tmp_path / "data", log, rows_per_shard=10, max_rejects="0")
    done = run(tmp_path / "data", log, rows_per_shard=10, max_rejects="1")
    assert (done.rows, done.resumed_rows) == (99, 99)


def test_progress_ends_where_the_log_ends(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 200)
    seen: list[Progress] = []
    preprocess(PreprocessConfig(sources=(str(log),), out=tmp_path / "data"), report=seen.append)
    assert (seen[-1].rows, seen[-1].bytes, seen[-1].total_bytes) == (200, log.stat().st_size, log.stat().st_size)
    assert [progress.rows for progress in seen] == sorted(progress.rows for progress in seen)


def test_an_output_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.doc").touch()
    with pytest.raises(InputError, match=r"full is not a data folder and not empty \(it holds thesis\.doc\)"):
        run(tmp_path / "full", log)
    with pytest.raises(InputError, match=r"log\.tsv is a file; give another --out"):
        run(log, log)
    with pytest.raises(InputError, match=r"log\.tsv/data.*cannot be made \(Not a directory\); give another --out"):
        run(log / "data", log)


def test_a_log_without_a_row_makes_no_data_folder(tmp_path: Path) -> None:
    (tmp_path / "log.tsv.gz").write_bytes(b"\n\n")
    with pytest.raises(InputError, match=r"log\.tsv\.gz: no row among 2 lines; name a log that has some"):
        run(tmp_path / "data", tmp_path / "log.tsv.gz", max_rejects="100%")
    assert not (tmp_path / "data/manifest.json").exists()
    with pytest.raises(InputError, match=r"log\.tsv\.gz: no row among its first 2 lines; name a log that has some"):
        forecast(PreprocessConfig(sources=(str(tmp_path / "log.tsv.gz"),), out=tmp_path / "data"))


def test_a_second_writer_is_turned_away(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 50)
    refused: list[str] = []

    def meanwhile(_: Progress) -> None:
        if not refused:
            with pytest.raises(InputError, match="is being written by another command") as caught:
                run(tmp_path / "data", log)
            refused.append(str(caught.value))

    preprocess(PreprocessConfig(sources=(str(log),), out=tmp_path / "data"), report=meanwhile)
    assert refused


def test_a_second_writer_that_is_turned_away_leaves_the_plan_alone(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 50)
    plans: list[bytes] = []

    def meanwhile(_: Progress) -> None:
        if not plans:
            plan = tmp_path / "data/.work/plan.json"
            plans.append(plan.read_bytes())
            with pytest.raises(InputError, match="is being written by another command"):
                run(tmp_path / "data", log, rows_per_shard=7)
            plans.append(plan.read_bytes())

    preprocess(PreprocessConfig(sources=(str(log),), out=tmp_path / "data"), report=meanwhile)
    assert plans[0] == plans[1]


@pytest.mark.parametrize("options", [{}, {"rows_per_shard": 7}])
def test_a_folder_that_was_finished_meanwhile_is_not_made_again(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run finishes between the look at the folder and the lock."""
    log = write_log(tmp_path / "log.tsv", 50)
    acquire = FileLock.acquire

    def late(lock: FileLock, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(FileLock, "acquire", acquire)
        run(tmp_path / "data", log)
        return acquire(lock, *arguments, **options)

    monkeypatch.setattr(FileLock, "acquire", late)
    (tmp_path / "data/.work").mkdir(parents=True)
    if options:
        with pytest.raises(InputError, match="was made with rows_per_shard 262144 instead of 7"):
            run(tmp_path / "data", log, **options)
    else:
        assert run(tmp_path / "data", log).nothing_to_do


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"validation": 0.6, "test": 0.4}, "--validation 0.6 and --test 0.4 must be 0 or more and sum to less than 1"),
        ({"validation": float("nan")}, "--validation nan and --test 0.1 must be 0 or more"),
        ({"rows_per_shard": 0}, "--rows-per-shard 0 must be at least 1"),
        ({"workers": 0}, "--workers 0 must be at least 1"),
        ({"max_rejects": "many"}, "--max-rejects 'many' is neither a count nor a share"),
        ({"max_rejects": "200%"}, "--max-rejects '200%' is neither a count nor a share"),
        ({"split": "days"}, "--split days needs at least two files"),
        ({"format": "none.toml"}, "format none.toml does not exist"),
    ],
)
def test_options_that_make_no_sense_are_said_in_one_line(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    log = write_log(tmp_path / "log.tsv", 5)
    with pytest.raises(InputError, match=why):
        run(tmp_path / "data", log, **options)


def test_real_rows_in_one_call(tmp_path: Path, real_data: Path) -> None:
    manifest = run(tmp_path / "data", real_data / "criteo_1tb_day0_10000.tsv.gz").manifest
    assert [manifest.splits[name].rows for name in SPLITS] == [8000, 1000, 1000]
    assert manifest.statistics["label_rate"] == pytest.approx(0.0265)
