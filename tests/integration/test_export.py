"""An exported run scores raw lines, in processes that hold nothing of this project, as evaluate scores their rows."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.device import open_rows
from pipeline.shards import Manifest
from trainer.cli import main
from trainer.serving import evaluate_run, open_run
from trainer.serving.export.programs import ONE_FILE_BYTES

TORCH_NEEDS = (
    "torch", "torchgen", "functorch", "filelock", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2",
    "markupsafe", "fsspec", "nvidia", "triton",
)  # fmt: skip
ONNXRUNTIME_NEEDS = ("onnxruntime", "numpy", "flatbuffers", "google", "packaging", "ml_dtypes")
VALIDATION = slice(9_600, 10_800)
"""Of the generated log's lines."""

BEGINNING = """
import importlib.util, json, sys
packages, folder = sys.argv[1:3]
sys.path[:0] = [packages, folder]
for name in ("trainer", "pipeline", "stepsize", "numba", "pyarrow", "safetensors"):
    assert importlib.util.find_spec(name) is None, name
import encode
dense, ids = zip(*map(encode.encode_line, sys.stdin.buffer))
"""
WITH_TORCH = (
    BEGINNING
    + """
import pickle, torch, torch._weights_only_unpickler as unpickler
def refuse(*arguments, **options):
    raise AssertionError("a pickle is read")
class Refusing(pickle.Unpickler):
    __init__ = refuse
pickle.load = pickle.loads = unpickler.load = torch.load = refuse
pickle.Unpickler = Refusing
program = torch.export.load(folder + "/model.pt2").module()
print(json.dumps(program(torch.tensor(dense), torch.tensor(ids, dtype=torch.int32).T).tolist()))
"""
)
WITH_ONNXRUNTIME = (
    BEGINNING
    + """
import numpy, onnxruntime
assert importlib.util.find_spec("torch") is None
session = onnxruntime.InferenceSession(folder + "/model.onnx")
inputs = {"dense": numpy.array(dense, "float32"), "ids": numpy.array(ids, "int32").T}
print(json.dumps(session.run(None, inputs)[0].tolist()))
"""
)


@pytest.fixture(scope="module")
def averaged_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run whose averaged weights answer."""
    folder = tmp_path_factory.mktemp("averaged")
    (folder / "config.toml").write_text(
        f'[data]\npath = "{small_data}"\nbatch_rows = 64\n[model]\ntable_rows = 2048\ndropout = 0.1\n'
        '[metrics]\nport = -1\n[optimizer]\naverage = "ema"\naverage_decay = 0.9\n[budget]\nsteps = 20\n'
        "[eval]\nevery_steps = 10\n[checkpoint]\nevery_steps = 10\n"
    )
    assert main(["train", str(folder / "config.toml"), "--run", str(folder / "run")]) == 0
    return folder / "run"


def expected_probabilities(run: Path, data: Path) -> np.ndarray:
    """Of the validation rows, on evaluate's path."""
    manifest = Manifest.load(data)
    opened = open_run(run, manifest=manifest)
    learner = opened.learner
    batches = open_rows(
        opened.config.data, manifest, table_rows=learner.table_rows, device=learner.device, split="validation",
        batch_rows=500,
    )  # fmt: skip
    with learner.answering() as model, torch.no_grad():
        logits, labels = zip(*((model(batch.dense, batch.ids), batch.label) for batch in batches), strict=True)
    scores, label = torch.cat(logits).double().cpu(), torch.cat(labels).double().cpu()
    _, evaluation = evaluate_run(run, split="validation", rows=None, data=None)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, label)
    assert float(loss) == pytest.approx(evaluation.loss, abs=1e-9)
    return scores.sigmoid().numpy()


def alone(packages: tuple[str, ...], folder: Path) -> Path:
    """A folder with these packages, as far as they are installed, and none beside them."""
    folder.mkdir()
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is not None:
            places = list(spec.submodule_search_locations or [spec.origin])
            place = Path(str(places[0]))
            (folder / place.name).symlink_to(place)
            for libraries in place.parent.glob(f"{name}.libs"):
                (folder / libraries.name).symlink_to(libraries)
    return folder


def scores_alone(program: str, packages: Path, folder: Path, lines: bytes) -> np.ndarray:
    command = [sys.executable, "-I", "-S", "-c", program, str(packages), str(folder)]
    finished = subprocess.run(command, input=lines, capture_output=True, check=False, cwd=folder)
    assert finished.returncode == 0, finished.stderr.decode()[-3000:]
    return np.array(json.loads(finished.stdout))


def validation_lines(log: Path) -> bytes:
    (day,) = log.glob("*.tsv")
    return b"".join(day.read_bytes().splitlines(keepends=True)[VALIDATION])


def test_a_process_with_torch_alone_scores_raw_lines_as_evaluate_does(
    averaged_run: Path, small_log: Path, small_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "clicks"
    assert main(["export", str(averaged_run), "--out", str(out), "--onnx", "no"]) == 0
    found = scores_alone(WITH_TORCH, alone(TORCH_NEEDS, tmp_path / "packages"), out, validation_lines(small_log))
    expected = expected_probabilities(averaged_run, small_data)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("one_file_bytes", [ONE_FILE_BYTES, 100_000], ids=["one file", "weights beside it"])
def test_a_process_with_onnxruntime_alone_scores_raw_lines_as_evaluate_does(
    averaged_run: Path,
    small_log: Path,
    small_data: Path,
    tmp_path: Path,
    *,
    one_file_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    monkeypatch.setattr("trainer.serving.export.programs.ONE_FILE_BYTES", one_file_bytes)
    out = tmp_path / "clicks"
    assert main(["export", str(averaged_run), "--out", str(out), "--onnx", "yes"]) == 0
    files = json.loads((out / "card.json").read_text())["files"]
    assert ("model.onnx.data" in files) == (files["model.onnx"]["bytes"] < 2048 * 16 * 4) == (one_file_bytes == 100_000)
    packages = alone(ONNXRUNTIME_NEEDS, tmp_path / "packages")
    found = scores_alone(WITH_ONNXRUNTIME, packages, out, validation_lines(small_log))
    np.testing.assert_allclose(found, expected_probabilities(averaged_run, small_data), rtol=0, atol=1e-6)


def test_the_card_tells_step_metrics_and_hashes(averaged_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "clicks"
    assert main(["export", str(averaged_run), "--out", str(out), "--onnx", "no", "--checkpoint", "10"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clicks"]
    card: dict[str, Any] = json.loads((out / "card.json").read_text())
    assert (card["step"], card["averaged_weights"], card["format"]["table_rows"]) == (10, True, 2048)
    records = [json.loads(line) for line in (averaged_run / "evals.jsonl").read_text().splitlines()]
    (of_step,) = [each for each in records if each["split"] == "validation" and each["step"] == 10]
    assert card["evaluations"]["validation"]["loss"] == of_step["loss"]
    assert set(card["files"]) == {"card.html", "encode.py", "model.pt2"}
    assert card["rows_trained"] == 10 * 64
    page = (out / "card.html").read_text(encoding="utf-8")
    assert "averaged weights of step 10, after 640 rows" in " ".join(page.split())
    assert f">{of_step['rows']:,}</td>" in page
    assert re.findall(r"(?:href|src)=\"([^\"]*)", page) == ["data:,", "card.json"]
    for name, entry in card["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == entry["sha256"]
        assert name == "card.html" or entry["sha256"] in page


@pytest.fixture
def refuses(averaged_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """An export with these options ends with one line that says so, and leaves nothing behind."""

    def run(*options: str, says: str, run: Path = averaged_run) -> None:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert main(["export", str(run), *options]) == 2
        (line,) = [each for each in capfd.readouterr().err.splitlines() if each.startswith("alphastream: ")]
        assert says in line
        assert sorted(tmp_path.rglob("*")) == before

    return run


def test_wrong_use_is_refused_in_a_line(refuses: Callable[..., None], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "clicks"))
    refuses(says="--out FOLDER is missing")
    refuses(*out, run=tmp_path / "nowhere", says="is not a run directory")
    refuses(*out, "--checkpoint", "7", says="has no checkpoint of step 7; it has those of 20, 10")
    refuses(*out, "--onnx", "maybe", says="give one of auto, yes, no")


def test_a_folder_that_is_there_is_left_but_for_an_earlier_export(
    refuses: Callable[..., None], averaged_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "clicks"
    out.mkdir()
    refuses("--out", str(out), says="is there already")
    refuses("--out", str(out), "--force", says="is no earlier export")
    (out / "card.json").write_text("{}")
    assert main(["export", str(averaged_run), "--out", str(out), "--onnx", "no", "--force"]) == 0
    assert json.loads((out / "card.json").read_text())["step"] == 20


def test_without_the_packages_for_onnx_the_rest_is_written(
    refuses: Callable[..., None],
    averaged_run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.serving.export.exporting.missing_onnx_packages", lambda: ["onnxscript"])
    out = tmp_path / "clicks"
    refuses("--out", str(out), "--onnx", "yes", says="pip install 'alphastream[onnx]'")
    assert main(["export", str(averaged_run), "--out", str(out)]) == 0
    assert "no model.onnx: onnxscript not installed" in capfd.readouterr().err
    assert not (out / "model.onnx").exists()


def test_an_interrupted_export_leaves_nothing(
    averaged_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.serving.export.exporting.check_torch_program", interrupt)
    assert main(["export", str(averaged_run), "--out", str(tmp_path / "clicks")]) != 0
    assert list(tmp_path.iterdir()) == []


def test_each_features_own_table_is_exported(tmp_path: Path, small_data: Path) -> None:
    """Of tables of 3 to 2,048 rows: the programs are tried with ids that each of them has."""
    config = tmp_path / "config.toml"
    config.write_text(
        f'[data]\npath = "{small_data}"\nbatch_rows = 64\n[model]\ntable_rows = 2048\ntables = "per_feature"\n'
        "[budget]\nsteps = 2\n[metrics]\nport = -1\n"
    )
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--onnx", "no"]) == 0
    assert (tmp_path / "out" / "card.json").is_file()
