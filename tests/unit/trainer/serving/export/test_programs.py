"""Programs of a model: what they answer, what they hold, and which are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.config import ConfigError
from trainer.learner.model import DLRM
from trainer.learner.tables import keep_by_rows
from trainer.serving.export.programs import (
    CHECKED_ROWS,
    Inputs,
    check_onnx,
    check_torch_program,
    sample_inputs,
    trace,
    write_onnx,
    write_torch_program,
)
from trainer.serving.opened import plain_model


def small_model(dense: int, sparse: int) -> DLRM:
    model = DLRM(dense_features=dense, sparse_features=sparse, table_rows=97, embedding_dim=4, bottom=(4,), top=(8, 1))
    model.initialize(torch.Generator().manual_seed(1))
    return model


def batches(dense: int = 2, sparse: int = 3) -> list[Inputs]:
    return [sample_inputs(rows, dense_features=dense, table_rows=[97] * sparse) for rows in CHECKED_ROWS]


@pytest.mark.parametrize(("dense", "sparse"), [(2, 3), (0, 3), (13, 1)])
def test_a_saved_program_answers_batches_of_any_size(tmp_path: Path, dense: int, sparse: int) -> None:
    model, inputs = plain_model(small_model(dense, sparse)), batches(dense, sparse)
    write_torch_program(trace(model, inputs[-1]), tmp_path / "model.pt2")
    assert check_torch_program(tmp_path / "model.pt2", model, inputs) < 1e-6


def test_a_program_holds_no_pickle(tmp_path: Path) -> None:
    write_torch_program(trace(plain_model(small_model(2, 3)), batches()[-1]), tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        heads = {name: archive.read(name)[:2] for name in archive.namelist()}
        configs = [archive.read(name) for name in heads if name.endswith("_config.json")]
    assert not [name for name, head in heads.items() if name.endswith((".pkl", ".pt")) and head]
    assert len(configs) == 2
    assert not [text for text in configs if b'"use_pickle":true' in text.replace(b" ", b"")]


def test_a_table_kept_by_rows_is_exported_as_it_is_now() -> None:
    model = small_model(2, 3)
    before = model.table.weight.detach().clone()
    keep_by_rows(model)
    assert type(model.table.weight) is not nn.Parameter
    exported = plain_model(model)
    assert type(exported.get_parameter("table.weight")) is nn.Parameter
    assert torch.equal(exported.get_parameter("table.weight"), before)
    assert exported.get_parameter("table.weight").data_ptr() == model.table.weight.data_ptr()


class Remembering(nn.Module):
    """Its only weights are a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", torch.linspace(-1, 1, 97 * 64), persistent=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.table[ids.long() * 64].sum(0) + dense.sum(1) / 100


@pytest.mark.parametrize("one_file_bytes", [1_000, 1_000_000])
def test_what_is_too_large_for_an_onnx_file_lies_beside_it(
    tmp_path: Path, one_file_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    monkeypatch.setattr("trainer.serving.export.programs.ONE_FILE_BYTES", one_file_bytes)
    model, inputs = Remembering(), batches()
    write_onnx(trace(model, inputs[-1]), inputs[-1], tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").exists() == (one_file_bytes == 1_000)
    (tmp_path / "elsewhere").mkdir()
    for path in list(tmp_path.glob("model.*")):
        path.rename(tmp_path / "elsewhere" / path.name)
    assert check_onnx(tmp_path / "elsewhere" / "model.onnx", model, inputs) < 1e-6


class Branching(nn.Module):
    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return dense.sum(1) if dense.sum() > 0 else -dense.sum(1)


class Counting(nn.Module):
    """Answers otherwise each time, which a program cannot."""

    calls = 0

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        self.calls += 1
        return dense.sum(1) / 10 + self.calls


def test_a_model_that_branches_on_values_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^Branching cannot be exported: .*no branch on their values") as refused:
        trace(Branching(), batches()[-1])
    assert "\n" not in str(refused.value)


def test_a_program_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    model = Counting()
    write_torch_program(trace(model, batches()[-1]), tmp_path / "model.pt2")
    with pytest.raises(ConfigError, match=r"^model.pt2: its probabilities for 1 rows differ .* more than rounding"):
        check_torch_program(tmp_path / "model.pt2", model, batches())
