"""`alphastream study` makes ordinary runs, records those that diverge, and continues where it was stopped."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.integration.forked_commands import ForkedCommands
from trainer.cli import main
from trainer.records import read_records

QUICK = """
[budget]
steps = 12
[eval]
rows = 256
[study]
"""


def results(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def has_begun(run: Path) -> bool:
    return (run / "steps.jsonl").is_file() and (run / "steps.jsonl").stat().st_size > 0


def weights(run: Path) -> dict[str, bytes]:
    newest = max((run / "checkpoints").iterdir())
    return {name: value.tobytes() for name, value in load_file(newest / "model.safetensors").items()}


def test_runs_are_ordinary_runs_and_are_made_once(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_config(QUICK + 'seeds = [1, 2]\n[[study.arm]]\nname = "a"\nset = { "optimizer.lr" = [0.001, 0.01] }')
    out = tmp_path / "out"
    assert main(["study", str(study), "--out", str(out)]) == 0
    rows = results(out)
    assert len(rows) == 4
    assert {row["outcome"] for row in rows.values()} == {"finished"}

    plain = write_config("[budget]\nsteps = 12\n[eval]\nrows = 256")
    arguments = ["--data.seed", "2", "--optimizer.lr", "0.01"]
    assert main(["train", str(plain), "--run", str(tmp_path / "run"), *arguments]) == 0
    name = "runs/a/lr=0.01-seed2"
    assert weights(tmp_path / "run") == weights(out / name)
    evaluations = {record["split"]: record["loss"] for record in read_records(tmp_path / "run" / "evals.jsonl")}
    assert float(rows[name]["best_validation_loss"]) == evaluations["validation"]
    assert float(rows[name]["test_loss"]) == evaluations["test"]

    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.jsonl")}
    study = write_config(QUICK + 'seeds = [1, 2]\n[[study.arm]]\nname = "a"\nset = { "optimizer.lr" = [0.001, 0.01] }')
    assert main(["study", str(study), "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.jsonl")} == before

    (out / "index.html").unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    assert (out / "index.html").is_file()


def test_a_run_that_diverges_is_a_result(write_config: Callable[..., Path], tmp_path: Path) -> None:
    arm = '[[study.arm]]\nname = "sgd"\nset = { optimizer.name = "sgd", optimizer.lr = [1e38, 0.1] }'
    study = write_config(QUICK + "keep_checkpoints = false\n" + arm)
    out = tmp_path / "out"
    assert main(["study", str(study), "--out", str(out)]) == 0
    rows = results(out)
    assert [row["outcome"] for row in rows.values()] == ["diverged", "finished"]
    assert not list(out.rglob("*.safetensors"))
    before = (out / "runs/sgd/lr=1e+38-seed0/events.jsonl").read_bytes()
    assert main(["study", str(study), "--out", str(out)]) == 0
    assert (out / "runs/sgd/lr=1e+38-seed0/events.jsonl").read_bytes() == before


def test_a_stopped_study_continues(write_config: Callable[..., Path], tmp_path: Path, forks: ForkedCommands) -> None:
    """Two runs in two processes, stopped by SIGTERM midway and then finished in this one."""
    arm = '[[study.arm]]\nname = "a"\nset = { "optimizer.lr" = [0.001, 0.01], stepsize.policy = "none" }'
    study = write_config(QUICK.replace("steps = 12", "steps = 300") + arm)
    out = tmp_path / "out"
    process = forks.start("study", study, "--out", out, "--jobs", "2")
    runs = [out / "runs" / "a" / f"lr={rate}-seed0" for rate in ("0.001", "0.01")]
    process.wait_until(lambda: any(map(has_begun, runs)))
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for worker in workers:  # so that none ends meanwhile
        os.kill(int(worker), signal.SIGSTOP)
    try:
        assert main(["study", str(study), "--out", str(out)]) == 2  # another process has it
        process.send_signal(signal.SIGTERM)
    finally:
        for worker in workers:
            os.kill(int(worker), signal.SIGCONT)
    assert process.wait() == 143
    begun = [run for run in runs if has_begun(run)]
    assert begun
    for run in begun:
        stops = [record for record in read_records(run / "events.jsonl") if record["event"] == "stop"]
        assert stops[-1]["reason"] == "interrupted"
        assert 0 < stops[-1]["step"] < 300

    assert main(["study", str(study), "--out", str(out)]) == 0
    assert {row["outcome"] for row in results(out).values()} == {"finished"}
    assert [row["steps"] for row in results(out).values()] == ["300", "300"]
    for run in begun:
        assert any(record["event"] == "resume" for record in read_records(run / "events.jsonl"))


def test_what_estimates_say_together_is_reported(write_config: Callable[..., Path], tmp_path: Path) -> None:
    measuring = (
        "interval = 5\ncount = 3\n"
        '[stepsize.measuring]\nestimators = ["unbiased", "biased", "hybrid"]\ndiagnostics = "full"'
    )
    study = write_config(f'[stepsize]\n{measuring}\n{QUICK}\n[[study.arm]]\nname = "observe"')
    out = tmp_path / "out"
    assert main(["study", str(study), "--out", str(out)]) == 0
    with (out / "alpha.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["estimates"] == "7"  # 3 in each interval of 5, 2 in the last, less the first
    assert float(row["biased_relative_mean"]) > float(row["unbiased_relative_mean"])
    assert -1 < float(row["cosine_b2_mean"]) < 0
    assert (out / "alpha_observe.png").is_file()


@pytest.mark.parametrize(
    "mistake",
    [
        ("", ["--jobs", "0"], ["--jobs", "0"]),
        ("", ["--arms", "b"], ["--arms", "'b'", "a"]),
        ("", ["--jobs", "2", "--metrics.port", "9999"], ["metrics.port"]),
        ("", ["--data.path", "nowhere"], ["nowhere"]),
        ("", ["--optimizer.lr", "0.5"], ["config.toml", "optimizer.lr", "'a'"]),
        ("", ["--optimizer.lrr", "0.5"], ["optimizer.lrr"]),
        ('"optimizer.lrr" = 1.0', [], ["config.toml", "'a'", "'optimizer.lrr'", "'optimizer.lr'"]),
        ('"optimizer.eps" = -1.0', [], ["a/lr=0.001-seed0", "eps"]),
    ],
)
def test_mistakes_are_one_line(
    write_config: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    mistake: tuple[str, list[str], list[str]],
) -> None:
    change, arguments, said = mistake
    study = write_config(
        QUICK + f'[[study.arm]]\nname = "a"\n[study.arm.set]\n"optimizer.lr" = [0.001, 0.01]\n{change}'
    )
    assert main(["study", str(study), "--out", str(tmp_path / "out"), *arguments]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("alphastream: ")]
    assert len(lines) == 1
    for word in said:
        assert word in lines[0]


def test_a_changed_study_does_not_mix_with_old_runs(
    write_config: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arm = '[[study.arm]]\nname = "a"'
    out = str(tmp_path / "out")
    assert main(["study", str(write_config(QUICK + arm)), "--out", out]) == 0
    changed = write_config(QUICK.replace("steps = 12", "steps = 13") + arm)
    assert main(["study", str(changed), "--out", out]) == 2
    assert "budget.steps = 12, the study now gives 13" in capfd.readouterr().err
    added = write_config(QUICK + arm + '\n[[study.arm]]\nname = "b"\nset = { "optimizer.lr" = 0.002 }')
    assert main(["study", str(added), "--out", out]) == 0
    assert list(results(Path(out))) == ["runs/a/seed0", "runs/b/seed0"]
