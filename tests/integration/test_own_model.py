"""A model and an optimizer from a file outside of the project, by configuration alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.shards import Manifest
from tests.integration.forked_commands import ForkedCommands, slow_from
from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.config import load_config
from trainer.job.learner import Learner
from trainer.records import checkpoint_steps, read_records
from trainer.serving import open_run

TWO_TOWERS = '''
import torch
from torch import nn

from sizes import WIDTH  # beside this file


class TwoTowers(nn.Module):
    """The dot product of a tower over the first half of the sparse features and one over all the others."""

    def __init__(self, dense_features, sparse_features, table_rows, hidden):
        super().__init__()
        self.half = sparse_features // 2
        self.table = nn.Embedding(table_rows, WIDTH)
        self.dropout = nn.Dropout(0.1)
        others = (sparse_features - self.half) * WIDTH + dense_features
        self.user = nn.Sequential(nn.Linear(self.half * WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, WIDTH))
        self.item = nn.Sequential(nn.Linear(others, hidden), nn.ReLU(), nn.Linear(hidden, WIDTH))

    def forward(self, dense, ids):
        vectors = self.dropout(self.table(ids)).transpose(0, 1)
        user = self.user(vectors[:, : self.half].flatten(1))
        item = self.item(torch.cat([vectors[:, self.half :].flatten(1), dense], 1))
        return (user * item).sum(1)


def make(**keywords):
    return TwoTowers(**keywords)


def column(**keywords):
    class Column(TwoTowers):
        def forward(self, dense, ids):
            return super().forward(dense, ids).unsqueeze(1)
    return Column(**keywords)


def endless(**keywords):
    class Endless(TwoTowers):
        def forward(self, dense, ids):
            return super().forward(dense, ids) / 0.0
    return Endless(**keywords)


class Doubled(torch.autograd.Function):
    """Has a backward, and no forward-mode derivative."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def backward_only(**keywords):
    class BackwardOnly(TwoTowers):
        def forward(self, dense, ids):
            return Doubled.apply(super().forward(dense, ids))
    return BackwardOnly(**keywords)


def nothing(**keywords):
    return None


def momentum(params, lr, nesterov):
    return torch.optim.SGD(params, lr=lr, momentum=0.9, nesterov=nesterov)


number = 3
'''

WRONG = """
import sys
import threading

import torch
from torch import nn


class Wrong(nn.Module):
    def __init__(self, kind, dense_features, table_rows, **options):
        super().__init__()
        self.kind = kind
        self.lock = threading.Lock() if kind == "locked" else None
        self.register_buffer("calls", torch.zeros(()))
        self.table = nn.Embedding(table_rows, 2, sparse=kind == "sparse")
        self.layer = nn.LazyLinear(1) if kind == "lazy" else nn.Linear(dense_features, 1)
        if kind == "frozen":
            self.requires_grad_(False)

    def forward(self, dense, ids):
        if self.kind == "writes":
            dense.mul_(2)
        logits = self.layer(dense).squeeze(1) + self.table(ids).sum((0, 2))
        self.calls += 1
        if self.kind == "centred":
            return logits - logits.mean()
        if self.kind == "squeeze":
            return logits.unsqueeze(1).squeeze()
        if self.kind == "listed":
            return logits if len(logits) > 1 else logits.tolist()
        if self.kind == "shorter":
            return logits[:3] if self.training else logits
        if self.kind == "noisy":
            return nn.functional.dropout(logits, 0.5)
        return logits.detach() if self.kind == "detached" else logits


def leaves(**keywords):
    sys.exit(3)


def __getattr__(kind):
    return lambda **keywords: Wrong(kind, **keywords)
"""

SETTINGS = """
factory = "{place}two_towers.py:make"
[model.options]
hidden = 8
[budget]
steps = 60
[optimizer]
factory = "{place}two_towers.py:momentum"
lr = 0.05
options = {{ nesterov = true }}
[stepsize]
policy = "{policy}"
{measured}
[eval]
rows = 256
[checkpoint]
every_steps = 20
"""


@pytest.fixture
def write_own(tmp_path: Path, small_data: Path) -> Callable[..., Path]:
    def write(text: str) -> Path:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        (home / "two_towers.py").write_text(TWO_TOWERS)
        (home / "sizes.py").write_text("WIDTH = 4\n")
        path = home / "config.toml"
        head = f'[data]\npath = "{small_data}"\nbatch_rows = 64\n[metrics]\nport = -1\n[model]\ntable_rows = 2048\n'
        path.write_text(head + text)
        return path

    return write


def test_trained_killed_resumed_observed_and_evaluated(
    write_own: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    forks: ForkedCommands,
) -> None:
    config = write_own(
        SETTINGS.format(place="", policy="observe", measured="interval = 5\ncount = 3")
    )  # beside the file
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", str(config), "--run", str(whole)]) == 0

    process = forks.start("train", config, "--run", cut, program=slow_from(25))
    process.wait_until((cut / "checkpoints" / "step-00000020").exists)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["train", str(config), "--run", str(cut)]) == 0
    assert lasting(cut)[1:] == lasting(whole)[1:]
    assert same_bits(lasting(cut)[0], lasting(whole)[0])
    assert sum(1 for _ in read_records(cut / "alpha.jsonl")) >= 10
    assert load_config(cut / "config.toml").model.factory_folder == str(config.parent)

    assert main(["evaluate", str(cut), "--split", "test"]) == 0
    assert "has changed" not in capfd.readouterr().err
    file = config.parent / "two_towers.py"
    file.write_text(file.read_text() + "# later\n")
    assert main(["evaluate", str(cut), "--split", "test"]) == 0
    assert "the file of model.factory has changed since step-00000060" in capfd.readouterr().err
    assert main(["train", str(config), "--run", str(cut), "--budget.steps", "62"]) == 0
    assert "the file of model.factory has changed since step 60" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("absent.py:make", "and there is no file"),
        ("absent_module:make", "there is no module 'absent_module'"),
        ("two_towers.py", "model.factory is 'two_towers.py'; give one of"),
        ("two_towers.py:made", "has no 'made'; give the name of a function"),
        ("two_towers.py:number", "'number' is a int; give a function or a class"),
        ("two_towers.py:TwoTowers", "raised TypeError: "),
        ("two_towers.py:nothing", "returns a NoneType; return a torch.nn.Module"),
        ("two_towers.py:column", "are of shape (7, 1) for 7 rows; end it with .squeeze(1)"),
        ("two_towers.py:endless", "its logits are not finite at the start"),
        ("two_towers.py:backward_only", "α* cannot be measured: MeasurementError: forward mode"),
        ("broken.py:make", "does not import: ZeroDivisionError: division by zero; correct"),
        ("leaving.py:make", "does not import: SystemExit: 3; correct"),
        ("wrong.py:leaves", "raised SystemExit: 3 when it was called"),
        ("wrong.py:writes", "writes to its inputs, which batches share"),
        ("wrong.py:centred", "depends on the other rows, or on chance"),
        ("wrong.py:noisy", "depends on the other rows, or on chance"),
        ("wrong.py:squeeze", "its logits are of shape () for 1 row; end it with .squeeze(1)"),
        ("wrong.py:listed", "its model returns a list for 1 row; return a tensor"),
        ("wrong.py:shorter", "'wrong.py:shorter', in training mode: its logits are of shape (3,) for 7 rows"),
        ("wrong.py:locked", "which cannot be made: TypeError: cannot pickle '_thread.lock' object; let copy.deepcopy"),
        ("wrong.py:frozen", "has no parameters to train"),
        ("wrong.py:detached", "no gradient goes from its logits to its weights"),
        ("wrong.py:sparse", "the gradient of table.weight is a sparse tensor; make its table with sparse=False"),
        ("wrong.py:lazy", "the size of layer.weight is left open"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    write_own: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    factory: str,
    message: str,
) -> None:
    options = "" if factory.endswith("TwoTowers") else "[model.options]\nhidden = 8\n"
    config = write_own(f'factory = "{factory}"\n{options}[stepsize]\npolicy = "observe"\n[budget]\nsteps = 3\n')
    (config.parent / "broken.py").write_text("1 / 0\n")
    (config.parent / "leaving.py").write_text("raise SystemExit(3)\n")
    (config.parent / "wrong.py").write_text(WRONG)
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["centred", "noisy", "writes", "sparse", "squeeze"])
def test_a_run_of_an_earlier_version_is_read_and_continued(
    write_own: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever its model: it was accepted when the run began."""
    config = write_own(
        f'factory = "wrong.py:{kind}"\n[optimizer]\nfactory = "wrong.py:sgd"\nlr = 0.01\n[stepsize]\npolicy = "none"\n'
        "[budget]\nsteps = 3\n[eval]\nrows = 256\n"
    )
    wrong = WRONG.replace(
        "def leaves", "def sgd(params, lr):\n    return torch.optim.SGD(params, lr=lr)\n\n\ndef leaves"
    )
    (config.parent / "wrong.py").write_text(wrong)
    run = tmp_path / "run"
    assert main(["train", str(config), "--run", str(run)]) == 2
    with monkeypatch.context() as earlier:
        earlier.setattr("trainer.job.learner.check_model", lambda *given, **settings: None)
        assert main(["train", str(config), "--run", str(run)]) == 0
    open_run(run)
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    assert main(["train", str(config), "--run", str(run), "--budget.steps", "5"]) == 0
    assert checkpoint_steps(run)[0] == 5


def test_a_model_that_cannot_be_copied_trains_without_a_measured_alpha(
    write_own: Callable[..., Path], tmp_path: Path
) -> None:
    """And the check of its gradient leaves nothing behind."""
    config = write_own('factory = "wrong.py:locked"\n[stepsize]\npolicy = "none"\n[budget]\nsteps = 3\n')
    (config.parent / "wrong.py").write_text(WRONG)
    settings = load_config(config)
    learner = Learner.build(settings, Manifest.load(settings.data.path).format, purpose="begin")
    assert float(learner.model.get_buffer("calls")) == 0.0
    assert learner.model.training
    assert all(weight.grad is None for weight in learner.model.parameters())
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0


def test_without_alpha_no_forward_mode_is_needed(write_own: Callable[..., Path], tmp_path: Path) -> None:
    text = SETTINGS.format(place="", policy="none", measured="").replace(":make", ":backward_only")
    config = write_own(text.replace("steps = 60", "steps = 3"))
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0


def test_a_module_is_found_on_pythonpath_and_found_again_without_it(
    write_config: Callable[..., Path], tmp_path: Path, forks: ForkedCommands
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "own_towers.py").write_text(TWO_TOWERS)
    (library / "sizes.py").write_text("WIDTH = 4\n")
    config = write_config('[budget]\nsteps = 3\n[stepsize]\npolicy = "none"\n')
    config.write_text(
        config.read_text().replace("[model]", '[model]\nfactory = "own_towers:make"\noptions = {hidden=8}')
    )
    train = [sys.executable, "-m", "trainer.cli", "train", str(config), "--run", str(tmp_path / "run")]
    root = Path(__file__).parents[2]
    found = subprocess.run(train, cwd=root, env={**os.environ, "PYTHONPATH": str(library)}, check=False)
    assert found.returncode == 0
    again = forks.run("evaluate", tmp_path / "run")
    assert again.returncode == 0, again.said


@pytest.mark.parametrize("factory", ["dlrm", "dcn_v2", "deepfm"])
def test_a_table_for_each_feature_trains(write_config: Callable[..., Path], tmp_path: Path, factory: str) -> None:
    """Also kept by rows, with the same weights."""
    config = write_config(
        "[budget]\nsteps = 12\n[stepsize]\ninterval = 5\ncount = 3\npolicy = 'observe'\n[eval]\nrows = 256\n"
    )
    text = config.read_text().replace("[model]", f'[model]\nfactory = "{factory}"\ntables = "per_feature"')
    config.write_text(text)
    runs = [tmp_path / "dense", tmp_path / "lazy"]
    for run in runs:
        assert main(["train", str(config), "--run", str(run), "--optimizer.table", run.name]) == 0
    assert same_bits(lasting(runs[0])[0], lasting(runs[1])[0])
