"""Weights as a line spells them, against Python's own reading of a number; and which negatives are drawn."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.encode import keep_negatives, tsv
from pipeline.line_buffer import PADDING_BYTES
from pipeline.schema import LogFormat

ROOT = Path(__file__).resolve().parents[4]
LOG = LogFormat(
    name="weighted",
    columns=("click", "shop", "weight"),
    label="click",
    dense=(),
    sparse=("shop",),
    bucket_sizes=(100,),
    delimiter=",",
    hexadecimal=False,
    missing=("7",),
    weight="weight",
)


def parsed(text: str, share: float = 1.0, source: int = 0, first_line: int = 0) -> tuple[tsv.Group, int, list[str]]:
    buffer = np.frombuffer(text.encode() + b"\xff" * PADDING_BYTES, np.uint8).copy()
    lines = text.count("\n")
    group, rejects = tsv.make_group(LOG, lines), tsv.make_rejects(lines)
    _, filled, taken, rejected = tsv.parse(
        buffer,
        0,
        len(text.encode()),
        tsv.make_layout(LOG),
        group,
        0,
        tsv.make_tally(LOG),
        rejects,
        tsv.make_scratch(LOG),
        keep_negatives(share, source=source, first_line=first_line),
    )
    assert taken == lines
    reasons = [
        tsv.reason(LOG, int(rejects.codes[i]), int(rejects.fields[i]), text.splitlines()[rejects.lines[i]].encode())
        for i in range(rejected)
    ]
    return group, filled, reasons


def as_python_has_it(field: str) -> np.float32 | None:
    """A weight, or None for what is no positive float32."""
    text = field.strip(" \t\v\f\r")
    if field in ("", "7") or not re.fullmatch(r"\+?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE):
        return None
    with np.errstate(over="ignore", under="ignore"):
        value = np.float32(float(text))
    return value if 0 < value < np.inf else None


def spellings() -> list[str]:
    rng = np.random.default_rng(0)
    numbers = [repr(float(x)) for x in rng.lognormal(0, 20, 300)] + [f"{x:.30f}" for x in rng.lognormal(0, 3, 100)]
    numbers += [f"{x:.{d}e}" for x, d in zip(rng.lognormal(0, 30, 200), rng.integers(0, 25, 200), strict=True)]
    odd = ["1", "+2.5", "-3", ".5", "5.", ".", "+", "e5", "1e", "1e+", "0", "0.0", "-0", "", "7", "7.0", "nan", "inf"]
    odd += [
        "0x10",
        "1_0",
        "1 2",
        " 1.5 ",
        "\t2",
        "1e400",
        "1e-400",
        "1e-45",
        "1.4e-45",
        "7e-46",
        "3.4028236e38",
        "1..2",
    ]
    odd += ["3.4028235677973366e38", "1" * 400, "0." + "0" * 50 + "1", "1e00000000000000000000001", "٣"]
    return numbers + odd


def test_weights_are_read_as_python_reads_them() -> None:
    fields = spellings()
    group, filled, reasons = parsed("".join(f"1,a,{field}\n" for field in fields))
    expected = [as_python_has_it(field) for field in fields]
    np.testing.assert_array_equal(group.weight[:filled], [value for value in expected if value is not None])
    assert len(reasons) == sum(value is None for value in expected)
    assert all(why.endswith("is not a positive number") for why in reasons)
    assert filled > 500
    assert len(reasons) > 15


def test_the_draw_of_a_line_is_of_its_place() -> None:
    lines = [f"{int(i % 4 == 0)},shop{i},{i + 1}\n" for i in range(4000)]
    whole = [int(w) for w in parsed("".join(lines), 0.3)[0].weight[: parsed("".join(lines), 0.3)[1]]]
    places = [w - 1 for w in whole]
    assert [i for i in places if i % 4 == 0] == list(range(0, 4000, 4))
    assert len([i for i in places if i % 4]) == pytest.approx(900, abs=5 * (3000 * 0.21) ** 0.5)
    parts = []
    for start in range(0, 4000, 700):
        group, filled, _ = parsed("".join(lines[start : start + 700]), 0.3, first_line=start)
        parts += [int(w) for w in group.weight[:filled]]
    assert parts == whole
    other, filled, _ = parsed("".join(lines), 0.3, source=1)
    assert [int(w) for w in other.weight[:filled]] != whole
    # a smaller share keeps some of those that a larger one keeps
    fewer, filled, _ = parsed("".join(lines), 0.1)
    assert {int(w) for w in fewer.weight[:filled]} < set(whole)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_share_is_met_and_draws_of_neighbours_do_not_depend_on_each_other(share: float) -> None:
    count = 100_000
    group, filled, _ = parsed("".join(f"0,s,{i}\n" for i in range(1, count + 1)), share)
    kept = np.zeros(count + 9, bool)
    kept[group.weight[:filled].astype(int)] = True
    deviation = (share * (1 - share) / count) ** 0.5
    assert abs(kept.sum() / count - share) < 5 * deviation
    for apart in (1, 2, 8):
        both = (kept[:-apart] & kept[apart:]).sum() / count
        assert abs(both - share**2) < 10 * deviation


def test_the_point_is_a_point_in_every_locale(tmp_path: Path) -> None:
    """A program around ours may have set its user's, where the C library reads a comma."""
    if shutil.which("localedef") is None:
        pytest.skip("localedef, which makes a locale, is not installed")
    made = ["localedef", "--no-archive", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if subprocess.run(made, capture_output=True, check=False).returncode > 1:
        pytest.skip("the sources of the German locale are not here")
    program = (
        "import locale; locale.setlocale(locale.LC_ALL, 'de_DE.UTF-8')\n"
        "assert locale.localeconv()['decimal_point'] == ','\n"
        "from tests.unit.pipeline.encode.test_weights import parsed\n"
        "print(parsed('1,a,1.75\\n0,a,0.5e1\\n1,a,12.25\\n')[0].weight.tolist())"
    )
    environment = {**os.environ, "LOCPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[1.75, 5.0, 12.25]", done.stderr
