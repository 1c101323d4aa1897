"""The wheel of stepsize alone: built without a network, installed where there is torch and nothing else."""

from __future__ import annotations

import email
import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import stepsize

ROOT = Path(__file__).resolve().parents[2]
LOOP = """
import sys, torch
from torch import nn
import stepsize
torch.manual_seed(0)
model, loss = nn.Linear(4, 1), nn.MSELoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
controller = stepsize.RateController(model, optimizer, loss, total_steps=200)
batches = [(x, x.sum(1, keepdim=True)) for x in torch.randn(201, 64, 4)]
rates = []
for step, ((x2, y2), (x1, y1)) in enumerate(zip(batches, batches[1:])):
    optimizer.zero_grad()
    loss(model(x2), y2).backward()
    with controller.around_step(x1, y1, step=step) as rate:
        optimizer.step()
    rates.append(rate)
print(stepsize.__version__, stepsize.__file__, max(rates) > 1e-3, rates[-1] < max(rates) / 5, sep="|")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling (extra dev)")
    folder = tmp_path_factory.mktemp("wheel")
    # a copy far from the checkout: nothing that its pyproject.toml names may lie outside the folder
    shutil.copytree(ROOT / "stepsize", folder / "alone", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=folder / "alone", capture_output=True, text=True, check=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment of torch, what torch requires, and the wheel."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, symlinks=True, with_pip=False)
    [site] = folder.glob("lib/python*/site-packages")
    for name in _with_requirements("torch"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    with zipfile.ZipFile(wheel) as archive:  # of pure Python: unpacked is installed
        archive.extractall(site)
    return folder / "bin" / "python"


def _with_requirements(name: str) -> set[str]:
    from packaging.requirements import Requirement

    found, left = set(), [name]
    while left:
        if (name := left.pop()) in found:
            continue
        found.add(name)
        wanted = map(Requirement, importlib.metadata.requires(name) or [])
        left += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_its_version_is_the_project_s(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert stepsize.__version__ == project["version"] == _metadata(wheel)["Version"]


def test_it_requires_torch_alone_and_extras_as_the_project_does(wheel: Path) -> None:
    from packaging.requirements import Requirement

    required = [Requirement(line) for line in _metadata(wheel).get_all("Requires-Dist", [])]
    assert [each.name for each in required if each.marker is None] == ["torch"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    known = {each.name: each.specifier for each in map(Requirement, every)}
    assert {each.name: each.specifier for each in required} == {each.name: known[each.name] for each in required}


def test_it_says_what_it_is(wheel: Path) -> None:
    metadata = _metadata(wheel)
    assert metadata["Name"] == "stepsize"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True) == (ROOT / "stepsize" / "README.md").read_bytes()


def test_it_has_every_module_the_marker_of_types_and_nothing_of_the_other_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licenses = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
        assert [archive.read(name) for name in licenses] == [(ROOT / "LICENSE").read_bytes()]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "stepsize").rglob("*.py")}
    assert held == modules | {"stepsize/py.typed", "stepsize/HORIZON.md"}


def test_every_package_of_the_project_is_typed() -> None:
    assert all((ROOT / name / "py.typed").is_file() for name in ("pipeline", "stepsize", "trainer", "ops"))


def test_beside_torch_alone_it_finds_a_rate(python: Path, tmp_path: Path) -> None:
    ended = subprocess.run([python, "-I", "-c", LOOP], cwd=tmp_path, capture_output=True, text=True, check=True)
    version, file, found, cooled = ended.stdout.strip().split("|")
    assert (version, found, cooled) == (stepsize.__version__, "True", "True")
    assert Path(file).is_relative_to(python.parents[1])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("-m", "stepsize.suite"), "stepsize.suite needs NumPy and more; pip install 'alphastream[suite]'"),
        (
            ("-c", "import stepsize, torch\nstepsize.StepSizeWorker(m := torch.nn.Linear(1, 1), "
             "torch.optim.SGD(m.parameters()), torch.nn.MSELoss(), curvature='hessian')"),
            "needs curvlinops; install it with pip install curvlinops-for-pytorch",
        ),
    ],
    ids=["suite", "comparison"],
)  # fmt: skip
def test_parts_that_need_more_say_what(python: Path, tmp_path: Path, command: tuple[str, ...], said: str) -> None:
    ended = subprocess.run([python, "-I", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert said in ended.stderr.splitlines()[-1]
