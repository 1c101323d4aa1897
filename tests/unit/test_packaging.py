"""The four packages are the ones of this checkout, whatever else is installed under such common names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "stepsize", "trainer", "ops")


def test_packages_resolve_to_this_checkout_from_anywhere() -> None:
    code = f"import json, importlib; print(json.dumps([importlib.import_module(n).__file__ for n in {PACKAGES}]))"
    found = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert [Path(path).parent for path in json.loads(found.stdout)] == [ROOT / name for name in PACKAGES]


def test_nothing_is_uploaded_by_accident() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]
    assert tuple(sorted(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])) == tuple(sorted(PACKAGES))


def test_preprocessing_needs_no_torch() -> None:
    modules = ["schema", "sample", "source", "encode", "parquet", "shards", "preprocess", "rows"]
    imports = "; ".join(f"import pipeline.{name}" for name in modules)
    code = f"import sys; {imports}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


ALONE = """
import sys
import torch
from torch import nn
table = nn.Embedding(500, 4, sparse=True)
model, loss = nn.Sequential(table, nn.Flatten(), nn.Linear(8, 1), nn.Flatten(0)), nn.BCEWithLogitsLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ids, y = torch.randint(500, (2, 64, 2)), torch.randint(2, (2, 64)).float()
def backward():
    loss(model(ids[0]), y[0]).backward()
backward()
optimizer.step()
before = {name.partition(".")[0] for name in sys.modules}
import stepsize
all_of_it = {"estimators": ("unbiased", "biased"), "diagnostics": "full", "per_group": True}
for options in ({}, all_of_it, {"method": "secant"}):
    worker = stepsize.StepSizeWorker(model, optimizer, loss, **options)
    policy = stepsize.make_policy(stepsize.StepSizeConfig(policy="auto"), initial_rate=1e-3, total_steps=9)
    backward()
    with worker.around_step(ids[1], y[1], train_inputs=ids[0], train_targets=y[0], step=0):
        optimizer.step()
    [estimate] = worker.poll()
    policy.observe(estimate)
    assert estimate.slope is not None
print(*sorted({name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)))
"""


def test_stepsize_needs_nothing_but_torch(tmp_path: Path) -> None:
    """A copy of the folder, far from the other packages, loads nothing that plain training has not: no curvlinops."""
    shutil.copytree(ROOT / "stepsize", tmp_path / "stepsize")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    assert found.stdout.split() == ["stepsize"]
