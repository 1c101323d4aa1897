"""What the compiler makes of the kernels for CUDA: nothing contracted, nothing approximate, no denormal flushed.

No device is needed for that: Triton's wheel brings its compiler and NVIDIA's assembler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed (make extras)")

ROUNDED_TO_NEAREST = {f"{name}.rn.f{bits}" for name in ("mul", "add", "sub", "div", "sqrt") for bits in (32, 64)}
WRITTEN_AS_ONE = {"fma.rn.f32"}
ROOT = Path(__file__).resolve().parents[5]


def compiled(folder: Path, prefix: str, capabilities: list[int], **options: Any) -> dict[str, dict[str, Any]]:
    """What `compiled_code` prints, from a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    script = str(Path(__file__).with_name("compiled_code.py"))
    command = [sys.executable, script, prefix, json.dumps(capabilities), json.dumps(options)]
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def every_kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return compiled(tmp_path_factory.mktemp("triton"), "", [80, 90])


def test_every_operation_is_rounded_to_nearest_and_by_itself(every_kernel: dict[str, dict[str, Any]]) -> None:
    assert len(every_kernel) > 20
    for name, code in every_kernel.items():
        assert code["code"] > 0, name
        fused = "average True" in name or "True True" in name or "catch_up whole" in name
        allowed = ROUNDED_TO_NEAREST | (WRITTEN_AS_ONE if fused else set())
        assert set(code["operations"]) <= allowed, name
        assert ("fma.rn.f32" in code["operations"]) is fused, name
        if "catch_up" in name or "move" in name or "whole" in name:
            assert {"div.rn.f32", "sqrt.rn.f32", "add.rn.f32", "mul.rn.f32"} <= set(code["operations"]), name


def test_a_kernel_compiled_otherwise_is_found(tmp_path: Path) -> None:
    """Contraction leaves its mark: products without a rounding of their own, which the assembler may fuse."""
    found = compiled(tmp_path, "move", [90], enable_fp_fusion=True)
    assert not set(found["move True, 90"]["operations"]) <= ROUNDED_TO_NEAREST


def test_whole_tensors_are_read_and_written_four_elements_at_a_time(
    every_kernel: dict[str, dict[str, Any]],
) -> None:
    memory = {name: code["memory"] for name, code in every_kernel.items()}
    vectors = memory["whole True, 90"]
    assert vectors["ld.global.v4.b32"] * 3 == vectors["st.global.v4.b32"] * 4 > 0, "4 words are read, 3 written"
    assert vectors["ld.global.b32"] == 1, "the flag"
    assert "ld.global.v4.b32" not in memory["whole False, 90"]
