"""The examples find the same rates, whoever's loop it is, and the optimizers step with them.

Each runs in a process of its own, as its reader runs it: what Lightning and the Trainer import is theirs. They import
torchvision, which no example uses, wherever it is installed, and fail where its operators were built for another torch
than the one that is there (torchvision of a package index beside torch's wheel for processors). So what is installed is
laid out again without torchvision, and the processes see that.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
STEPS = 60
PROBE = """
import json, sys, torch
from importlib import import_module
from torch.optim.optimizer import register_optimizer_step_pre_hook
stepped = []
def watch(optimizer, arguments, given):
    stepped.append(float(optimizer.param_groups[0]["lr"]))
register_optimizer_step_pre_hook(watch)
try:
    exec(sys.argv[4])
except ModuleNotFoundError as error:
    if error.name not in ("lightning", "transformers", "accelerate"):
        raise
    sys.exit(f"absent: {error}")
module = import_module("stepsize.examples." + sys.argv[1])
rates = getattr(module, sys.argv[2])(int(sys.argv[3]))
print()
print(json.dumps({"rates": rates, "stepped": stepped}))
"""
LOOPS = {
    "lightning_loop": ("train_by_lightning", "import lightning"),
    "hf_trainer": ("train_by_hf", "from transformers import Trainer; import accelerate"),
}


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Python with all that is installed here but torchvision."""
    site = tmp_path_factory.mktemp("site")
    for folder in [Path(each) for each in sys.path if Path(each).name in ("site-packages", "dist-packages")]:
        for entry in folder.iterdir():
            if not entry.name.startswith("torchvision") and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry.resolve())
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(site)])

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)

    return start


def _trained(run: Run, module: str, function: str, imports: str = "") -> dict[str, Any]:
    ended = run("-c", PROBE, module, function, str(STEPS), imports)
    said = (ended.stderr.splitlines() or [""])[-1]
    if ended.returncode == 1 and said.startswith("absent: "):
        pytest.skip(f"extra examples is not here; {said}")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def plain(run: Run) -> dict[str, Any]:
    return _trained(run, "plain_loop", "train_plainly")


def test_the_plain_loop_finds_a_rate_steps_with_it_and_cools_down(plain: dict[str, Any]) -> None:
    assert plain["stepped"] == plain["rates"]
    assert len(plain["rates"]) == STEPS
    assert plain["rates"][0] == 1e-6
    assert max(plain["rates"]) > 1e-2 > plain["rates"][-1]


@pytest.mark.parametrize("module", LOOPS)
def test_other_loops_step_with_the_plain_loop_s_rates(module: str, run: Run, plain: dict[str, Any]) -> None:
    assert _trained(run, module, *LOOPS[module]) == plain


def test_as_a_command_an_example_prints_a_rate_a_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["plain_loop", "3"])
    monkeypatch.delitem(sys.modules, "stepsize.examples.plain_loop", raising=False)
    runpy.run_module("stepsize.examples.plain_loop", run_name="__main__")
    first, *more = map(float, capsys.readouterr().out.splitlines())
    assert first == 1e-6
    assert len(more) == 2


@pytest.mark.parametrize("module", ["plain_loop", *LOOPS])
def test_what_the_readme_shows_of_an_example_stands_in_it(module: str) -> None:
    page = (ROOT / "stepsize" / "README.md").read_text(encoding="utf-8")
    _, _, section = page.partition(f"python -m stepsize.examples.{module}`")
    shown = section.partition("```python\n")[2].partition("```")[0]
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    example = (ROOT / "stepsize" / "examples" / f"{module}.py").read_text(encoding="utf-8")
    assert len(lines) > 5
    assert [line for line in lines if line not in example] == []
