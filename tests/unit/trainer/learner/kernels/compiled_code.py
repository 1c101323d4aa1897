"""Compiles every kernel for devices that are not here, and prints what its code computes with; run by a test."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trainer.learner.kernels import rows, segments, whole
from trainer.learner.kernels.launches import EXACT

ARITHMETIC = r"\b(?:fma|mad|mul|add|sub|div|sqrt|rcp|neg|ex2)\.[.\w]*f(?:32|64)"

NUMBERS = dict.fromkeys(("decay", "beta1", "rest1", "beta2", "rest2", "addend", "factor"), "fp32")
TABLE = {"theta": "*fp32", "m": "*fp32", "v": "*fp32"}
SIZES = {"COLUMNS": 128, "TAKEN": 4}


def variants() -> dict[str, tuple[Any, dict[str, str], dict[str, Any]]]:
    """Kernel, types of its arguments in order and compile-time values, by name."""
    found = {}
    missed = {"numbers": "*fp32", "bounds": "*fp64", "width": "i32", "beta1": "fp32", "beta2": "fp32"}
    for ids in ("*i32", "*i64"):
        for averaged, fused in ((False, True), (True, True), (True, False)):
            head = {"ids": ids, "count": "i32", "stamps": "*i32", "rows": "i32", "base": "i32", "steps": "i32"}
            found[f"catch_up {ids} {averaged} {fused}"] = (
                rows.catch_up_kernel,
                {**head, **TABLE, "average": "*fp32", **missed, "negligible": "fp32", "withheld": "*fp32"},
                {"WHOLE": False, "MASKED": True, "AVERAGED": averaged, "FUSED": fused, **SIZES},
            )
    kernel, types, values = found["catch_up *i32 True True"]
    found["catch_up whole"] = (kernel, types, {**values, "WHOLE": True})
    found["catch_up *i32 True True unmasked"] = (kernel, types, {**values, "MASKED": False})
    head = {"distinct": "*i64", "segments": "*i32", "count": "i32", "sums": "*fp32", "stamps": "*i32"}
    types = {**head, "rows": "i32", "now": "i32", **TABLE, "width": "i32", **NUMBERS, "found_inf": "*fp32"}
    for masked in (True, False):
        found[f"move {masked}"] = (rows.move_kernel, types, {"MASKED": masked, **SIZES})
    head = {"stamps": "*i32", "rows": "i32", "now": "i32", "mean": "*fp32", "theta": "*fp32", "weight": "fp32"}
    for fused in (True, False):
        found[f"average {fused}"] = (
            rows.average_kernel, {**head, "width": "i32"}, {"FUSED": fused, "COLUMNS": 128, "TAKEN": 32}
        )  # fmt: skip
    named = {"ids": "*i64", "segments": "*i32", "rows": "*i64", "count": "i32"}
    found["name_rows"] = (segments.name_rows_kernel, named, {"TAKEN": 1024})
    head = {"segments": "*i32", "order": "*i64", "values": "*fp32", "count": "i32", "sums": "*fp32"}
    for ordered in (True, False):
        found[f"sum_chunks {ordered}"] = (
            segments.sum_chunks_kernel,
            {**head, "parts_of": "*i32", "parts": "*fp32", "width": "i32"},
            {"ORDERED": ordered, "CHUNK": 32, "COLUMNS": 128},
        )
    for vectors in (True, False):
        found[f"whole {vectors}"] = (
            whole.step_kernel,
            {"pieces": "*i64", "count": "i32", **NUMBERS, "found_inf": "*fp32"},
            {"MASKED": True, "PIECES": 16, "ELEMENTS": 1024, "VECTORS": vectors},
        )
    return found


def main(prefix: str, capabilities: list[int], options: dict[str, Any]) -> None:
    """One JSON object: variant → {"operations": {instruction: count}, "memory": likewise, "code": its size}.

    Of the variants whose name begins with `prefix`.
    """
    found = {}
    for name, (kernel, types, values) in variants().items():
        if not name.startswith(prefix):
            continue
        for capability in capabilities:
            source = ASTSource(fn=kernel, signature={**types, **dict.fromkeys(values, "constexpr")}, constexprs=values)
            built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            operations = Counter(re.findall(ARITHMETIC, built.asm["ptx"]))
            memory = Counter(re.findall(r"\b(?:ld|st)\.global[.\w]*", built.asm["ptx"]))
            found[f"{name}, {capability}"] = {
                "operations": operations, "memory": memory, "code": len(built.asm["cubin"])
            }  # fmt: skip
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), {**EXACT, **json.loads(sys.argv[3])})
