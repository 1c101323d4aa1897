"""The command: a killed study goes on and ends with the same tables; mistakes are told in a line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stepsize.suite import SuiteError, command, suite_command
from stepsize.suite.problems import TASKS
from stepsize.suite.store import PlannedRun, RunStore
from tests.finished_runs import TINY, finished

ROOT = Path(__file__).resolve().parents[4]
STUDY = """
import json, os, signal, sys
from pathlib import Path
from stepsize.suite import store, suite_command
from stepsize.suite.problems import TASKS
from tests.finished_runs import TINY
left, where = int(sys.argv[2]), sys.argv[3]
whole, replace = store.RunStore.put, Path.replace

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def put(self, *given):
    global left
    left -= 1
    if left == 0 and where == "within":
        Path.replace = killed
    whole(self, *given)
    if left == 0 and where == "after":
        killed()

store.RunStore.put = put
TASKS["tiny"] = TINY
sys.exit(suite_command(json.loads(sys.argv[1])))
"""


def arguments(folder: Path, jobs: int) -> list[str]:
    asked = ["--tasks", "tiny", "--methods", "cosine,auto", "--seeds", "2", "--jobs", str(jobs)]
    return ["--out", str(folder), *asked]


def killed_study(folder: Path, kill_at: int, where: str, jobs: int) -> int:
    """Exit code of a study; its output ends only when its processes have, too."""
    command = [sys.executable, "-c", STUDY, json.dumps(arguments(folder, jobs)), str(kill_at), where]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=150).returncode


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv") if path.name != "processor_time.csv"}


@pytest.mark.timeout(600)
def test_a_killed_study_goes_on_and_ends_with_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    monkeypatch.setitem(TASKS, "tiny", TINY)
    assert suite_command(arguments(whole, 1)) == 0
    assert killed_study(killed, 4, "within", 1) == -signal.SIGKILL
    assert len(list((killed / "runs" / "tiny").glob("[!.]*.json"))) == 3
    assert killed_study(killed, 9, "after", 2) == -signal.SIGKILL
    assert suite_command(arguments(killed, 1)) == 0
    assert tables(killed) == tables(whole)
    assert {"summary.csv", "regret.csv", "rates.csv", "guesses.csv", "tasks.csv"} == tables(whole).keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_with_a_line_whatever_becomes_of_the_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    class Telling:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(number)

    def interrupted(*_: object) -> int:
        type("Owner", (), {"telling": Telling()})  # a RuntimeError in Python 3.11
        return 0

    before = signal.getsignal(number)
    monkeypatch.setattr(command, "_study", interrupted)
    assert suite_command(arguments(tmp_path, 1)) == 128 + number
    assert capsys.readouterr().err == "rates: stopped; the same command continues\n"
    assert signal.getsignal(number) is before


def test_a_run_is_kept_whole_and_read_again(tmp_path: Path) -> None:
    planned = PlannedRun(task="tiny", method="cosine", rate=0.0316, seed=1)
    run = finished(planned, 1.25, 0.1 + 0.2)
    RunStore(tmp_path, None).put(planned, TINY, run.record)
    assert RunStore(tmp_path, None).get(planned, TINY) == run
    other = TASKS["digits-mlp"]
    assert RunStore(tmp_path, None).get(planned, other) is None  # another definition under the same name
    [path] = tmp_path.rglob("*.json")
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with pytest.raises(SuiteError, match="damaged; delete it"):
        RunStore(tmp_path, None).get(planned, TINY)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--tasks", "digit-mlp"], "perhaps digits-mlp"),
        (["--tasks", "digits-mlp", "--methods", "auto"], "'cosine' is what the others are compared with"),
        (["--methods", "cosine,autto"], "there is no 'autto'"),
        (["--seeds", "0"], "--seeds: 0 is not positive"),
        (["--tasks", "text-gru"], "no task is left: text-gru reads tinyshakespeare.txt"),
        (["--data", "/nowhere/at/all"], "--data: /nowhere/at/all is no folder"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    assert suite_command(["--out", str(tmp_path), *given]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_two_studies_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert suite_command(["--out", str(tmp_path), "--tasks", "digits-mlp"]) == 2
    assert "another study runs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
