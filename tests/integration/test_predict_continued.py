"""predict interrupted: the same command ends with the same bytes, and no other takes up what was left."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.small_disk import fill, small_file_system
from tests.integration.forked_commands import ForkedCommands
from tests.trained import IN_SMALL_BATCHES, Trained
from trainer.serving import predicting
from trainer.serving.scores import KeptScores

INTERRUPTED_AT_LINES = {
    signal.SIGKILL: (1_000, 2_500, 4_000, 6_000, 9_000),
    signal.SIGTERM: (1_000, 6_000),
    signal.SIGINT: (3_000,),
}


@pytest.fixture
def log(trained: Trained, tmp_path: Path) -> Path:
    """9,601 lines, one of them no row."""
    return write_log(trained, tmp_path / "log.tsv")


def write_log(trained: Trained, path: Path) -> Path:
    path.write_bytes(b"\n".join([*trained.lines[:3000], b"no row", *trained.lines[3000:9600]]))
    return path


@pytest.fixture(scope="module")
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory, forks: ForkedCommands) -> Path:
    """A folder with the log, and what one call left of it that nothing disturbed, with what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    write_log(trained, folder / "log.tsv")
    told = forks.run(*command(trained, folder, folder, "whole"), program=IN_SMALL_BATCHES)
    assert told.returncode == 0, told.said
    (folder / "whole.json").write_text(told.printed)
    return folder


def command(trained: Trained, whole: Path, folder: Path, name: str) -> list[object]:
    out = ["--out", folder / f"{name}.parquet", "--rejects", folder / f"{name}.tsv"]
    return ["predict", trained.run, whole / "log.tsv", *out, "--json"]


@pytest.mark.parametrize("number", INTERRUPTED_AT_LINES)
def test_interrupted_again_and_again_it_makes_the_same_files(
    trained: Trained, whole: Path, tmp_path: Path, number: int, forks: ForkedCommands
) -> None:
    state = tmp_path / "cut.parquet.partial" / "state.json"
    cut = command(trained, whole, tmp_path, "cut")

    def lines_done() -> int:
        return json.loads(state.read_text())["lines"] if state.exists() else 0

    moments = INTERRUPTED_AT_LINES[signal.Signals(number)]
    for lines in moments:
        process = forks.start(*cut, program=IN_SMALL_BATCHES, HELD_AT_LINES=str(lines))
        process.wait_until(lambda lines=lines: lines_done() >= lines)
        process.send_signal(number)
        if number == signal.SIGKILL:
            assert process.wait() == -number
        else:
            assert process.wait() == 143
            said = process.said.splitlines()
            assert said[-1] == "alphastream: interrupted; run the same command again to continue"
    assert not (tmp_path / "cut.parquet").exists()
    assert not (tmp_path / "cut.tsv").exists()
    told = forks.run(*cut, program=IN_SMALL_BATCHES)
    assert told.returncode == 0, told.said
    found, expected = json.loads(told.printed), json.loads((whole / "whole.json").read_text())
    assert found["resumed_lines"] >= moments[-1]
    assert expected["resumed_lines"] == 0
    assert found["evaluation"] == expected["evaluation"]
    assert (tmp_path / "cut.parquet").read_bytes() == (whole / "whole.parquet").read_bytes()
    assert (tmp_path / "cut.tsv").read_bytes() == (whole / "whole.tsv").read_bytes()
    assert (whole / "whole.tsv").read_bytes().split(b"\t", 1)[1] == b"3001\t1 fields instead of 40\tno row\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.parquet", "cut.tsv"]


class Interrupted:
    """Calls of predict that a signal ends when all lines are done, before anything has its name."""

    def __init__(self, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
        self._trained, self._monkeypatch = trained, monkeypatch

    def predict(self, *arguments: object) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with self._monkeypatch.context() as patch:
            patch.setattr(KeptScores, "publish", interrupt)
            assert self._trained.predict(*arguments) == 143


@pytest.fixture
def interrupted(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Interrupted:
    return Interrupted(trained, monkeypatch)


def test_what_another_command_can_finish_is_kept(
    trained: Trained, log: Path, tmp_path: Path, interrupted: Interrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another log, or other rejects, under the same name: refused, unless it is to be dropped."""
    out, other = tmp_path / "s.parquet", tmp_path / "other.tsv"
    other.write_bytes(b"\n".join(trained.lines[:100]))
    interrupted.predict(log, "--out", out)
    state = (tmp_path / "s.parquet.partial" / "state.json").read_bytes()
    for arguments, words in (
        ([other], "9,601 lines of other lines; run that command again to finish it, give another --out, or --force"),
        ([log, "--rejects", tmp_path / "r.tsv"], "9,601 lines with another --rejects; run that command again"),
    ):
        capsys.readouterr()
        assert trained.predict(*arguments, "--out", out) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert words in line
        assert (tmp_path / "s.parquet.partial" / "state.json").read_bytes() == state
    capsys.readouterr()
    assert trained.predict(log, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_lines"] == 9601
    interrupted.predict(log, "--out", tmp_path / "t.parquet")
    capsys.readouterr()
    assert trained.predict(other, "--out", tmp_path / "t.parquet", "--force", "--json") == 0
    said = capsys.readouterr()
    assert "t.parquet.partial has 9,601 lines of other lines; they are dropped, and all lines scored anew" in said.err
    assert (json.loads(said.out)["lines"], json.loads(said.out)["resumed_lines"]) == (100, 0)


def test_what_nobody_can_finish_is_dropped_with_a_word(
    trained: Trained, log: Path, tmp_path: Path, interrupted: Interrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores of a log as it was before it changed, and such whose file is damaged."""
    out = tmp_path / "s.parquet"
    interrupted.predict(log, "--out", out)
    log.write_bytes(log.read_bytes() + b"\n" + trained.lines[9600])
    capsys.readouterr()
    interrupted.predict(log, "--out", out)
    assert "has 9,601 lines of other lines; they are dropped" in capsys.readouterr().err
    kept = tmp_path / "s.parquet.partial" / "logits"
    kept.write_bytes(kept.read_bytes()[:-1])
    capsys.readouterr()
    assert trained.predict(log, "--out", out, "--json") == 0
    said = capsys.readouterr()
    assert "has 9,602 lines and is damaged; they are dropped" in said.err
    assert json.loads(said.out)["resumed_lines"] == 0
    assert trained.predict(log, "--out", tmp_path / "t.parquet") == 0
    assert out.read_bytes() == (tmp_path / "t.parquet").read_bytes()


def test_standard_input_is_not_gone_on_with(
    trained: Trained, tmp_path: Path, interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What it gives next time may be something else."""
    for part in (slice(0, 100), slice(100, 200)):
        lines = io.BytesIO(b"\n".join(trained.lines[part]))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
        interrupted.predict("-", "--out", tmp_path / "s.parquet")
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == "alphastream: interrupted; run the same command again"
        assert list(tmp_path.iterdir()) == []


def test_a_log_that_changes_meanwhile_is_said_once(
    trained: Trained, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its scores are worth nothing, and are not in the way of the next call."""
    refuse = predicting.LogRows.refuse_changed

    def grown(rows: predicting.LogRows) -> None:
        log.write_bytes(log.read_bytes() + b"\n")
        refuse(rows)

    with monkeypatch.context() as patch:
        patch.setattr(predicting.LogRows, "refuse_changed", grown)
        assert trained.predict(log, "--out", tmp_path / "s.parquet") == 2
    assert "log.tsv changed while it was read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["log.tsv"]
    assert trained.predict(log, "--out", tmp_path / "s.parquet") == 0


def test_killed_between_its_two_names_it_goes_on(
    trained: Trained, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rejects have theirs, and are not in the way of the command that they are from; of another they are."""
    command = [log, "--out", tmp_path / "s.parquet", "--rejects", tmp_path / "r.tsv"]
    replace = Path.replace

    def die(path: Path, target: Path) -> Path:
        if target.name == "s.parquet":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        assert trained.predict(*command) == 143
    rejects = (tmp_path / "r.tsv").read_bytes()
    capsys.readouterr()
    assert trained.predict(log, "--out", tmp_path / "t.parquet", "--rejects", tmp_path / "r.tsv") == 2
    assert "r.tsv is there already; give another --rejects, or --force" in capsys.readouterr().err
    assert trained.predict(*command) == 0
    assert (tmp_path / "r.tsv").read_bytes() == rejects
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.tsv", "r.tsv", "s.parquet"]


@pytest.mark.parametrize("pages", [1, 15, 30])
def test_a_disk_full_of_rejects_is_said_and_gone_on_from(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], pages: int
) -> None:
    """Full while lines are read, and where the file gets its name."""
    log = tmp_path / "log.tsv"
    log.write_bytes(b"\n".join([*trained.lines[:9600], *([b"no row but some text in its place"] * 1000)]))
    assert trained.predict(log, "--out", tmp_path / "whole.parquet", "--rejects", tmp_path / "whole.tsv") == 0
    with small_file_system(tmp_path / "small", mebibytes=4) as disk:
        command = [log, "--out", disk / "s.parquet", "--rejects", disk / "r.tsv"]
        ballast = fill(disk, leave_bytes=pages * 4096)
        capsys.readouterr()
        assert trained.predict(*command) == 74
        [line] = capsys.readouterr().err.splitlines()
        assert "cannot be written (No space left on device); make room and run the same command again" in line
        assert not (disk / "s.parquet").exists()
        ballast.unlink()
        assert trained.predict(*command) == 0
        assert (disk / "s.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        assert (disk / "r.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
        assert sorted(path.name for path in disk.iterdir()) == ["r.tsv", "s.parquet"]
