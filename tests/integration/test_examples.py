"""The worked examples of pipeline and trainer, run from the installed wheel as their readers run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = """
import os, runpy, sys, torch._dynamo, pipeline.device.own_loop
for state, steps in zip(sys.argv[1::2], sys.argv[2::2]):
    if os.fork() == 0:
        sys.argv = ["own_loop", "data", state, steps]
        runpy.run_module("pipeline.examples.own_loop", run_name="__main__", alter_sys=True)
        sys.exit()
    assert os.wait()[1] == 0
    print("ended", flush=True)
"""
"""Runs the module in one process after the other, as `python -m` does; what they import is imported once."""


def test_a_loop_of_one_s_own_goes_on_where_it_was_stopped(from_the_wheel: Callable[..., str], tmp_path: Path) -> None:
    said = from_the_wheel("-c", PROCESSES, "whole.pt", "27", "state.pt", "13", "state.pt", "27").split("ended\n")
    whole, begun, ended, nothing = (lines.splitlines() for lines in said)
    assert [line.split()[0] for line in whole] == [str(step) for step in range(27)]
    assert len(begun) == 13
    assert begun + ended == whole
    assert nothing == []
    losses = [float(line.split()[1]) for line in whole]
    assert sum(losses[1:]) / 26 < losses[0] - 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "state.pt", "whole.pt"]


def test_a_run_is_trained_and_used_from_python(from_the_wheel: Callable[..., str]) -> None:
    output = from_the_wheel("-m", "trainer.examples.train_and_use", "data", "run", "20")
    said, *tables = output.split("\n\n")
    assert said.splitlines()[0] == "the budget is reached"
    assert said.splitlines()[-1].endswith("on 1,200 rows")
    by_name = {table.split()[0]: table.splitlines() for table in tables}
    assert by_name.keys() == {"tenths", "evaluations", "alpha"}
    parts = [line.split() for line in by_name["tenths"][1:]]
    assert [int(rows) for rows, *_ in parts] == [120] * 10
    foretold = [float(each) for _, each, _ in parts]
    assert foretold == sorted(foretold)
    assert {line.split()[1] for line in by_name["evaluations"] if line.startswith("validation")} == {
        "5",
        "10",
        "15",
        "20",
    }
    assert len(by_name["alpha"]) == 1 + 4


def test_the_readme_names_the_examples() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(pipeline/examples/own_loop.py)" in page
    assert "(trainer/examples/train_and_use.py)" in page
