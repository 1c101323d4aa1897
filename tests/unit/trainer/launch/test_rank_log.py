"""A rank's lines: in memory before there is a run, in a file of bounded size then, and never waited for."""

from __future__ import annotations

from pathlib import Path

from trainer.launch.rank_log import KEPT_LINES, TAIL_LINES, RankLog


def test_lines_wait_for_the_run(tmp_path: Path) -> None:
    begun = False
    log = RankLog(tmp_path / "ranks/rank-1.log", begun=lambda: begun)
    log.write(b"one\n")
    assert list(tmp_path.iterdir()) == []
    begun = True
    log.write(b"two\n")
    assert log.path.read_bytes() == b"one\ntwo\n"
    assert log.tail() == ["one", "two"]


def test_memory_and_disk_are_bounded(tmp_path: Path) -> None:
    begun = False
    log = RankLog(tmp_path / "ranks/rank-1.log", begun=lambda: begun, most_bytes=100)
    for number in range(3 * KEPT_LINES):
        log.write(b"%d\n" % number)
    begun = True
    log.flush()
    assert log.path.read_bytes().split(b"\n")[0] == b"%d" % (2 * KEPT_LINES)
    for number in range(200):
        log.write(b"%9d\n" % number)
    assert {path.name for path in log.path.parent.iterdir()} == {"rank-1.log", "rank-1.log.1"}
    assert sum(path.stat().st_size for path in log.path.parent.iterdir()) <= 220
    assert log.path.read_bytes().endswith(b"199\n")
    assert len(log.tail()) == TAIL_LINES


def test_a_disk_that_takes_nothing_costs_lines_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "ranks").touch()
    log = RankLog(tmp_path / "ranks/rank-1.log", begun=lambda: True)
    log.write(b"\xff is no text\n")
    assert log.tail() == ["\N{REPLACEMENT CHARACTER} is no text"]
    (tmp_path / "ranks").unlink()
    log.write(b"later\n")
    assert log.path.read_bytes() == b"\xff is no text\nlater\n"
