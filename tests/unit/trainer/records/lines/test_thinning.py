"""Old records merged into blocks: exact sums, the same file however often it is done, nothing across a checkpoint."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.synthetic_run import alpha_records, step_records, write_lines
from trainer.records.lines import index_lines, thinning
from trainer.records.lines.steps import BIN, bin_middle, merge_steps
from trainer.records.records import Records, read_records

FULL = 16


def lines(path: Path) -> list[dict[str, Any]]:
    return list(read_records(path))


def thin(path: Path, *, done: int, checkpoints: Sequence[int] = (), full_steps: int = FULL) -> None:
    records = Records(path, one_a_step=True)
    records.rewrite(lambda index: thinning(path, index, done=done, full_steps=full_steps, checkpoints=checkpoints))
    assert records.take_notices() == []
    records.close()


def covered(path: Path) -> list[tuple[int, int]]:
    """(first step, behind the last) of every line."""
    return [(line["step"], line["step"] + line.get("steps", 1)) for line in lines(path)]


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps.jsonl"
    write_lines(path, step_records(1000))
    return path


def test_the_newest_steps_are_whole_and_older_ones_in_blocks_twice_as_long_when_twice_as_old(steps: Path) -> None:
    before = steps.read_bytes().splitlines()
    thin(steps, done=1000)
    found = covered(steps)
    assert [high for _, high in found[:-1]] == [low for low, _ in found[1:]], "a step is missing or there twice"
    assert (found[0], found[-1][1]) == ((0, 1), 1000), "the first step stays apart"
    assert steps.read_bytes().splitlines()[-FULL:] == before[-FULL:]
    for low, high in found[10:]:  # the first ones are cut by the step that stays apart
        size = high - low
        assert low % size == 0
        assert size == 1 or 1000 - high >= FULL * size // 2
        start = low // (2 * size) * 2 * size
        assert 1000 - (start + 2 * size) < FULL * size, "it should be merged further"
    assert len(found) < FULL * (1 + math.log2(1000 / FULL))


def test_sums_are_those_of_the_steps(steps: Path) -> None:
    before = lines(steps)
    thin(steps, done=1000)
    after = lines(steps)
    assert len(after) < len(before) / 5
    for name in ("rows", "seconds"):
        assert sum(line[name] for line in after) == pytest.approx(sum(line[name] for line in before), rel=1e-13)
    for name in before[0]["phases"]:
        total = sum(line["phases"][name] for line in before)
        assert sum(line["phases"][name] for line in after) == pytest.approx(total, rel=1e-13)
    for name in ("loss", "learning_rate"):
        mean = sum(line[name] for line in before) / 1000
        assert sum(line[name] * line.get("steps", 1) for line in after) / 1000 == pytest.approx(mean, rel=1e-13)


def test_what_a_mean_hides_stands_beside_it(steps: Path) -> None:
    before = {line["step"]: line for line in lines(steps)}
    thin(steps, done=1000)
    merged = [line for line in lines(steps) if line.get("steps", 1) > 1]
    for line in merged:
        own = [before[step] for step in range(line["step"], line["step"] + line["steps"])]
        for name in ("loss", "learning_rate", "seconds"):
            values = [step[name] for step in own]
            assert line["spread"][name]["least"] == min(values)
            assert line["spread"][name]["most"] == max(values)
        rates = np.array([step["learning_rate"] for step in own])
        assert line["spread"]["learning_rate"]["squares"] == pytest.approx(
            rates.var() * len(rates), rel=1e-9, abs=1e-30
        )
        bins = line["spread"]["seconds"]["bins"]
        assert bins == Counter(str(math.floor(math.log(step["seconds"]) / BIN)) for step in own)
        for number in bins:
            assert min(abs(bin_middle(int(number)) / step["seconds"] - 1) for step in own) < 0.01


def test_losses_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    records = step_records(64)
    for step in (4, 5, 6, 7, 9):
        records[step]["loss"] = None
    write_lines(path, records)
    thin(path, done=256)
    merged = {line["step"]: line for line in lines(path)}
    assert (merged[4]["steps"], merged[4]["loss"], merged[4]["nonfinite"]) == (4, None, 4)
    finite = [records[step]["loss"] for step in (8, 10, 11, 12, 13, 14, 15)]
    assert merged[8]["loss"] == pytest.approx(sum(finite) / 7)
    assert merged[8]["nonfinite"] == 1
    assert "nonfinite" not in merged[32]


def test_fields_that_are_not_known_stay_where_both_agree() -> None:
    one, other = step_records(2)
    merged = merge_steps({**one, "generation": 3, "another": True}, {**other, "generation": 3})
    assert merged["generation"] == 3
    assert "another" not in merged


def test_withheld_steps_are_counted_by_cause() -> None:
    lines = [{"step": step, "rows": 8, "loss": 0.5, "seconds": 0.1} for step in range(4)]
    lines[0]["withheld"] = {"cause": "input", "what": "an input is inf"}
    lines[3]["withheld"] = {"cause": "gradient", "what": "the gradient of table.weight is nan"}
    assert merge_steps(lines[1], lines[2]).get("withheld") is None
    halves = merge_steps(lines[0], lines[1]), merge_steps(lines[2], lines[3])
    assert merge_steps(*halves)["withheld"] == {"input": 1, "gradient": 1}
    lines[1]["withheld"] = lines[0]["withheld"]
    assert merge_steps(lines[0], lines[1])["withheld"] == {"input": 2}


@pytest.mark.parametrize("name", ["steps", "alpha"])
@pytest.mark.parametrize("seed", range(4))
def test_the_file_is_the_same_however_often_it_was_thinned(tmp_path: Path, name: str, seed: int) -> None:
    """With checkpoints that come and go, at whatever moments, and lines that are missing."""
    chance = random.Random(seed)
    steps = step_records(600)
    records = steps if name == "steps" else alpha_records(steps, variants=True)
    gone = set(chance.sample(range(600), 40))
    records = [record for record in records if record["step"] not in gone]
    once, often = tmp_path / "once" / f"{name}.jsonl", tmp_path / "often" / f"{name}.jsonl"
    for path in (once, often):
        path.parent.mkdir()
    write_lines(once, records)
    for done in [*sorted(chance.sample(range(1, 1500), 12)), 1500]:
        new = [record for record in records if record["step"] < done]
        have = max(
            (record.get("last_step", record["step"] + record.get("steps", 1) - 1) for record in lines(often)),
            default=-1,
        )
        with often.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in new if record["step"] > have)
        thin(often, done=done, checkpoints=[300, done // 2, done] if done < 1500 else [300])
    thin(once, done=1500, checkpoints=[300])
    assert often.read_bytes() == once.read_bytes()
    assert once.read_bytes().count(b"\n") < len(records) / 4


@pytest.mark.parametrize("checkpoint", [1, 2, 37, 300, 511, 512, 998])
def test_a_checkpoint_is_cut_back_to_exactly_after_thinning(steps: Path, checkpoint: int) -> None:
    records = Records(steps, one_a_step=True)
    records.cut(10**9, None)
    whole = lines(steps)
    extent = (checkpoint - 1, checkpoint)
    length = sum(len(json.dumps(line)) + 1 for line in whole[:checkpoint])
    thin(steps, done=1000, checkpoints=[checkpoint])
    records = Records(steps, one_a_step=True)
    records.cut(length, type(records.extent)(*extent))
    found = covered(steps)
    assert found[-1][1] == checkpoint
    assert sum(high - low for low, high in found) == checkpoint
    assert records.take_notices() == []
    assert records.extent == extent
    kept = lines(steps)
    total = sum(line["seconds"] for line in whole[:checkpoint])
    assert sum(line["seconds"] for line in kept) == pytest.approx(total, rel=1e-13)


def test_a_block_across_a_checkpoint_that_came_back_is_told_as_missing(steps: Path) -> None:
    thin(steps, done=1000)
    records = Records(steps, one_a_step=True)
    records.cut(10**9, type(records.extent)(300, 301))
    block = next(line for line in lines(steps)[::-1])
    assert block["step"] + block["steps"] <= 301
    [notice] = records.take_notices()
    assert f"lacks {301 - block['step'] - block['steps']} of the 301 steps" in notice


def test_estimates_keep_counts_and_sums_of_those_they_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "alpha.jsonl"
    before = alpha_records(step_records(1000), variants=True)
    write_lines(path, before)
    thin(path, done=1000)
    after = lines(path)
    assert len(after) < len(before) / 4
    assert sum(line.get("estimates", 1) for line in after) == len(before)
    outcomes: Counter[str] = Counter()
    for line in after:
        outcomes.update(line["merged"]["outcomes"] if "merged" in line else {line["outcome"]: 1})
    assert outcomes == Counter(line["outcome"] for line in before)
    merged = [line for line in after if "merged" in line]
    by_step = {line["step"]: line for line in before}
    for line in merged:
        assert {name: line[name] for name in by_step[line["step"]]} == by_step[line["step"]]
        own = [by_step[step] for step in range(line["step"], line["last_step"] + 1) if step in by_step]
        numbers = [one for one in own if one["relative"] is not None]
        assert line["merged"]["measured"] == len(numbers)
        assert line["merged"]["negative"] == sum(one["relative"] < 0 for one in numbers)
        slopes, curvatures = (np.array([one[name] for one in numbers]) for name in ("slope", "curvature"))
        wanted = [
            len(numbers),
            slopes.sum(),
            curvatures.sum(),
            *(np.array([slopes**2, slopes * curvatures, curvatures**2]).sum(axis=1)),
        ]
        assert line["merged"]["pairs"] == pytest.approx(wanted, rel=1e-12)
        rates = np.array([one["learning_rate"] for one in numbers])
        assert line["merged"]["per_rate"] == pytest.approx(
            [(slopes / rates).sum(), (curvatures / rates**2).sum()], rel=1e-12
        )


def test_lines_that_later_ones_take_back_and_damaged_ones_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    first, again = step_records(100), step_records(400)[50:]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in first)
        file.write("{half a li\n")
        file.writelines(json.dumps(record) + "\n" for record in again)
    thin(path, done=400)
    found = covered(path)
    assert [high for _, high in found[:-1]] == [low for low, _ in found[1:]]
    assert sum(line["rows"] for line in lines(path)) == sum(line["rows"] for line in step_records(400))


def test_ten_million_steps_fit_a_few_hundred_thousand_lines() -> None:
    """Of the rule alone; the lines are not written."""
    from trainer.records.lines.blocks import block_levels

    done, full, lines = 10_000_000, 65_536, 0
    for start in range(0, done, 1_000_000):
        step = np.arange(start, start + 1_000_000)
        levels = block_levels(step, step, done=done, full_steps=full, kept=[1])
        lines += len(np.unique(step >> levels << levels))
    assert lines < 350_000
    assert index_lines(Path("nowhere")).extent() == (-1, 0)
