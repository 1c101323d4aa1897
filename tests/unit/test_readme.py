"""What the README says can be done, can be done: its links, commands, configuration and code."""

from __future__ import annotations

import doctest
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.cli import main
from trainer.cli.entry import VERBS
from trainer.config import config_from
from trainer.study import read_study

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", ROOT / "stepsize" / "README.md", ROOT / "stepsize" / "HORIZON.md")
LINKS = sorted(
    {
        (page.parent, link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    }
)
COMMANDS = re.findall(r"\.venv/bin/alphastream (\w+)(.*?)(?:\s{2,}#.*)?$", README, re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("folder", "link"), LINKS)
def test_links_lead_somewhere(folder: Path, link: str) -> None:
    assert link.startswith("https://") or (folder / link).exists()


def test_the_examples_of_stepsize_run() -> None:
    result = doctest.testfile(str(ROOT / "stepsize" / "README.md"), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b(?! it)", README))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize(("verb", "arguments"), COMMANDS)
def test_commands_and_their_options_exist(verb: str, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb in VERBS
    assert main([verb, "--help"]) == 0
    usage = capsys.readouterr().out
    for option in re.findall(r"--[\w.-]+", arguments):
        assert option in usage


def test_configurations_are_valid() -> None:
    for text in blocks("toml"):
        values = tomllib.loads(text)
        if "data" in values:
            assert config_from(values, where="README").data.path


def test_the_study_of_your_own_has_six_runs(tmp_path: Path) -> None:
    """Two rates and auto, with two seeds each."""
    [text] = [block for block in blocks("toml") if "study" in tomllib.loads(block)]
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    file = read_study(tmp_path / "study.toml")
    runs = file.unfold(replace(file.base, data=replace(file.base.data, path="DATA"))).runs
    assert len({run.name for run in runs}) == 6
    assert {run.config.stepsize.policy for run in runs if run.arm == "auto"} == {"auto"}


def test_the_loop_of_your_own_runs() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    names: dict[str, object] = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "loss": nn.CrossEntropyLoss(),
        "x1": torch.randn(32, 4),
        "y1": torch.randint(3, (32,)),
        "x2": torch.randn(32, 4),
        "y2": torch.randint(3, (32,)),
        "step": 0,
    }
    before = model.weight.detach().clone()
    [code] = [block for block in blocks("python") if "StepSizeWorker" in block]
    exec(code, names)
    assert names["estimate"].relative is not None  # pyright: ignore[reportAttributeAccessIssue]
    assert not torch.equal(before, model.weight)
