"""Rows for benchmarks: the data folder that was named, or a generated one."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.sample import SampleConfig, write_sample


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """`--data DATA`, generated rows by default."""
    parser.add_argument("--data", type=Path, help="data folder made by `alphastream preprocess`; default: generated")


def data_folder(named: Path | None, stack: ExitStack, *, rows: int = 200_000) -> Path:
    """`named`, or a folder of `rows` generated rows that goes when `stack` closes."""
    if named is not None:
        return named
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    write_sample(SampleConfig(out=folder / "log", rows=rows))
    preprocess(PreprocessConfig(sources=(str(folder / "log"),), out=folder / "data"))
    return folder / "data"
