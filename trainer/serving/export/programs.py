"""A click model as programs that run elsewhere, checked against the model before anybody gets them.

Letters: R rows, D dense columns, S sparse columns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipeline.errors import StorageError, cause_of
from trainer.config import ConfigError
from trainer.learner import ShiftedLogits

CHECKED_ROWS = (1, 2, 509)
"""Batches that a program must answer as its model does; of several sizes, as it is written for any."""
TOLERANCE = 2e-6
"""Largest difference of two probabilities that differ in float32 rounding alone."""
ONE_FILE_BYTES = 1_500_000_000
"""Protocol buffers, and so an ONNX file, hold 2 GB at most; larger weights go beside it."""
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Inputs = tuple[Tensor, Tensor]
"""dense (R, D) float32, ids (S, R) int32"""


class ClickProbability(nn.Module):
    """Probability of a click (R,) from dense (R, D) float32 and table rows ids (S, R) int32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return torch.sigmoid(self.model(dense, ids).float())


def sample_inputs(rows: int, *, dense_features: int, table_rows: Sequence[int]) -> Inputs:
    """Made-up rows within what a model takes; `table_rows` of each sparse feature."""
    generator = torch.Generator().manual_seed(rows)
    dense = torch.randint(0, 5000, (rows, dense_features), generator=generator).float().add_(1).log_()
    ids = [torch.randint(0, size, (rows,), generator=generator, dtype=torch.int32) for size in table_rows]
    return dense, torch.stack(ids) if ids else torch.empty((0, rows), dtype=torch.int32)


def trace(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The program of a model for batches of any size.

    Raises: ConfigError for a model that torch.export cannot follow.
    """
    rows = Dim("rows")
    try:
        with _silent(), torch.no_grad():
            program = torch.export.export(ClickProbability(model), inputs, dynamic_shapes=({0: rows}, {1: rows}))
    except Exception as error:  # whatever the tracer or the model's own code raises
        shown = model.model if isinstance(model, ShiftedLogits) else model
        raise ConfigError(
            f"{type(shown).__name__} cannot be exported: torch.export says {_first_line(error)!r}; let its forward "
            "use tensor operations alone, with no branch on their values or on the number of rows"
        ) from error
    program._example_inputs = None  # would be saved as a pickle
    return program


def write_torch_program(program: ExportedProgram, path: Path) -> None:
    """The program as a .pt2 file, of JSON and raw tensors.

    Raises: StorageError if the file cannot be written.
    """
    try:
        torch.export.save(program, path)
    except RuntimeError as error:  # torch's writer has no other
        raise StorageError(
            f"{path}: writing failed ({_first_line(error)}); make space or choose another disk"
        ) from error


def missing_onnx_packages() -> list[str]:
    """Those of the extra `onnx` that are not installed."""
    return [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]


def write_onnx(program: ExportedProgram, inputs: Inputs, path: Path) -> None:
    """The program as an ONNX file; weights beyond ONE_FILE_BYTES go into a second one, named `path` + `.data`.

    Raises: ConfigError for a program that ONNX has no operators for.
    """
    held = [*program.state_dict.values(), *program.constants.values()]
    weight_bytes = sum(each.numel() * each.element_size() for each in held if isinstance(each, Tensor))
    rows = Dim("rows")
    try:
        with _silent():
            torch.onnx.export(
                program,
                inputs,
                path,
                dynamo=True,
                verbose=False,
                external_data=weight_bytes > ONE_FILE_BYTES,
                input_names=["dense", "ids"],
                output_names=["probability"],
                dynamic_shapes=({0: rows}, {1: rows}),
            )
    except OSError:
        raise
    except Exception as error:  # of several packages
        raise ConfigError(f"the model has no ONNX form: {_first_line(error)!r}; leave it out with --onnx no") from error


def check_torch_program(path: Path, model: nn.Module, batches: list[Inputs]) -> float:
    """The largest difference of a saved program's probabilities from the model's.

    Raises: ConfigError if it is more than rounding.
    """
    program = torch.export.load(path).module()
    with torch.no_grad():
        return _largest_difference(path, model, batches, [program(*inputs) for inputs in batches])


def check_onnx(path: Path, model: nn.Module, batches: list[Inputs]) -> float:
    """As `check_torch_program`, of an ONNX file in onnxruntime."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}
    answers = []
    for dense, ids in batches:
        given = {"dense": dense.numpy(), "ids": ids.numpy()}
        (answer,) = session.run(["probability"], {name: value for name, value in given.items() if name in names})
        answers.append(torch.from_numpy(np.asarray(answer)))
    return _largest_difference(path, model, batches, answers)


@torch.no_grad()
def _largest_difference(path: Path, model: nn.Module, batches: list[Inputs], answers: list[Tensor]) -> float:
    largest = 0.0
    for inputs, answer in zip(batches, answers, strict=True):
        expected = model(*inputs).double().sigmoid()
        difference = float((answer.double() - expected).abs().max()) if answer.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE:  # also not if it is not a number
            raise ConfigError(
                f"{path.name}: its probabilities for {len(expected)} rows differ from the model's by up to "
                f"{difference:.3g}, which is more than rounding, so nothing was written; choose another checkpoint if "
                "its weights are not finite, otherwise let the model's forward depend on its inputs alone"
            )
        largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What the exporters print and warn of is no news to a user: the outcome is checked."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else cause_of(error) or type(error).__name__
