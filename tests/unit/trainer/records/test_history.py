"""The records of a run are read as far as they are whole, each step and estimate once."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.synthetic_run import alpha_records, evaluation_records, step_records, write_lines, write_run
from trainer.loop import Stop
from trainer.records.columns import read_steps
from trainer.records.history import ENDS, RunHistory
from trainer.records.lines import bin_middle


def step_line(step: int, **changes: object) -> dict[str, object]:
    return {"step": step, "epoch": 0, "rows": 1, "loss": 0.5, "learning_rate": 1e-3, "seconds": 1.0} | changes


def test_every_field_arrives(tmp_path: Path) -> None:
    history = RunHistory.load(write_run(tmp_path, 100, variants=True))
    expected = step_records(100)
    assert history.steps["loss"].tolist() == [record["loss"] for record in expected]
    assert history.phases["data_wait"].tolist() == [record["phases"]["data_wait"] for record in expected]
    estimates = alpha_records(expected, variants=True)
    assert history.outcomes == Counter(record["outcome"] for record in estimates)
    np.testing.assert_array_equal(history.alpha["biased"], [record["biased"]["relative"] for record in estimates])
    evaluations = [record for record in evaluation_records(expected) if record["split"] == "test"]
    assert history.evaluations["test"]["auc"].tolist() == [record["auc"] for record in evaluations]
    assert history.messages[-1][0] == 50
    assert history.damaged_lines == 0


def test_events_read_as_sentences(tmp_path: Path) -> None:
    events = [
        {"time": 1.5, "event": "start", "step": 0},
        {"time": 2.5, "event": "checkpoint", "step": 9, "checkpoint": "step-9"},
        {"time": 3.5, "event": "policy", "step": 10, "message": "rate doubled"},
        {"time": 4.5, "event": "resume", "step": 9, "checkpoint": "step-9"},
        {"time": 5.5, "event": "stop", "step": 12, "reason": "budget", "skipped_rows": 0},
        {"time": 6.5, "event": "stop", "step": 13, "reason": "interrupted", "skipped_rows": 1200},
        {"time": 7.5, "event": "of a later version", "step": 14, "size": 3, "of": "it"},
    ]
    write_lines(tmp_path / "events.jsonl", events)
    assert RunHistory.load(tmp_path).messages == (
        (0, "training began"),
        (9, "saved step-9"),
        (10, "rate doubled"),
        (9, "continued from step-9"),
        (12, "the budget is reached"),
        (13, "stopped by a signal; resumable (1,200 damaged rows left out)"),
        (14, "of a later version: size 3, of it"),
    )


def test_every_way_to_stop_has_its_words() -> None:
    assert {stop.name.lower(): stop.text for stop in Stop} == ENDS


def test_missing_files_are_empty_tables(tmp_path: Path) -> None:
    history = RunHistory.load(tmp_path)
    assert len(history.steps["step"]) == 0
    assert history.outcomes == {}
    assert history.evaluations == {}
    assert history.phase_totals == {}


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_costs_that_line_only(tmp_path: Path, cut: int) -> None:
    path = write_run(tmp_path, 20) / "steps.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    history = RunHistory.load(tmp_path)
    # Without only its newline the last line is still whole.
    kept = 20 if cut == 1 else 19
    assert history.steps["step"].tolist() == list(range(kept))
    assert len(history.phases["forward"]) == kept
    assert history.damaged_lines == 20 - kept


def test_a_line_torn_in_the_middle_is_counted_and_passed_over(tmp_path: Path) -> None:
    lines = [json.dumps(step_line(step)) for step in range(4)]
    lines[2] = lines[2][:10]
    (tmp_path / "steps.jsonl").write_text("\n".join([*lines, "", "7", "\ufffd\x00"]) + "\n", encoding="utf-8")
    history = RunHistory.load(tmp_path)
    assert history.steps["step"].tolist() == [0, 1, 3]
    assert history.damaged_lines == 3


def test_steps_that_were_run_again_count_once(tmp_path: Path) -> None:
    first = [step_line(step, loss=1.0) for step in range(8)]
    again = [step_line(step, loss=2.0) for step in range(5, 7)]
    write_lines(tmp_path / "steps.jsonl", [*first, *again])
    history = RunHistory.load(tmp_path)
    assert history.steps["step"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert history.steps["loss"].tolist() == [1.0] * 5 + [2.0] * 2


def test_an_estimate_and_an_evaluation_written_again_count_once(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "alpha.jsonl",
        [{"step": step, "outcome": "ok", "relative": relative} for step, relative in [(4, 1.0), (9, 2.0), (4, 3.0)]],
    )
    write_lines(tmp_path / "evals.jsonl", [{"step": 4, "split": "test", "loss": loss} for loss in (0.5, 0.25)])
    history = RunHistory.load(tmp_path)
    assert history.alpha["step"].tolist() == [4, 9]
    assert history.alpha["relative"].tolist() == [3.0, 2.0]
    assert history.evaluations["test"]["loss"].tolist() == [0.25]


def test_null_and_missing_numbers_are_nan(tmp_path: Path) -> None:
    write_lines(tmp_path / "steps.jsonl", [step_line(0, loss=None), {"step": 1}])
    write_lines(tmp_path / "alpha.jsonl", [{"step": 0, "outcome": "flat", "relative": None}])
    history = RunHistory.load(tmp_path)
    assert all(math.isnan(loss) for loss in history.steps["loss"])
    assert not history.measured.any()


def test_a_phase_that_appears_late_is_zero_before(tmp_path: Path) -> None:
    lines = [step_line(0, phases={"forward": 1.0}), step_line(1), step_line(2, phases={"alpha": 2.0, "other": 0.0})]
    write_lines(tmp_path / "steps.jsonl", lines)
    history = RunHistory.load(tmp_path)
    assert {name: seconds.tolist() for name, seconds in history.phases.items()} == {
        "forward": [1.0, 0.0, 0.0],
        "alpha": [0.0, 0.0, 2.0],
    }


def test_time_spent_evaluating_joins_the_totals(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "steps.jsonl", [step_line(0, phases={"forward": 3.0}), step_line(1, phases={"forward": 2.0})]
    )
    write_lines(
        tmp_path / "evals.jsonl", [{"step": 2, "split": s, "loss": 0.5, "seconds": 3.0} for s in ("test", "train")]
    )
    assert RunHistory.load(tmp_path).phase_totals == {"evaluation": 6.0, "forward": 5.0}


def test_pauses_are_those_of_the_steps_that_count(tmp_path: Path) -> None:
    def pause(step: int, **phases: float) -> dict[str, object]:
        return {"event": "pause", "step": step, "phases": phases}

    events = [
        {"event": "start", "step": 0},
        pause(10, evaluation=4.0, other=0.5),
        pause(10, checkpoint=1.0),
        pause(20, evaluation=50.0),  # before a kill: these steps were made again
        {"event": "resume", "step": 10},
        pause(20, evaluation=5.0),
    ]
    write_lines(tmp_path / "events.jsonl", events)
    write_lines(tmp_path / "evals.jsonl", [{"step": step, "split": "validation", "seconds": 3.0} for step in (10, 20)])
    history = RunHistory.load(tmp_path)
    assert history.pauses == {"evaluation": 9.0, "other": 0.5, "checkpoint": 1.0}
    assert history.phase_totals == history.pauses
    assert [text for _, text in history.messages] == ["training began", "resume"]


def test_evaluations_from_before_pauses_were_recorded_count_by_their_own_seconds(tmp_path: Path) -> None:
    write_lines(tmp_path / "events.jsonl", [{"event": "pause", "step": 20, "phases": {"evaluation": 5.0}}])
    write_lines(tmp_path / "evals.jsonl", [{"step": step, "split": "validation", "seconds": 3.0} for step in (10, 20)])
    assert RunHistory.load(tmp_path).pauses == {"evaluation": 8.0}


def test_times_of_ranks_are_those_of_the_steps_that_count_and_of_ranks_that_are_as_many(tmp_path: Path) -> None:
    def ranks(step: int, *forward: float, sent: int = 0) -> dict[str, object]:
        return {
            "event": "ranks",
            "step": step,
            "steps": 10,
            "phases": {"forward": forward},
            "sent_bytes": {"ids": sent},
        }

    events = [
        {"event": "start", "step": 0},
        ranks(10, 1.0, 2.0, sent=5),
        ranks(20, 1.0, 2.0, 3.0, sent=7),
        ranks(30, 10.0, 10.0, 10.0, sent=100),  # before a kill: these steps were made again
        {"event": "resume", "step": 20},
        {
            "event": "ranks",
            "step": 25,
            "steps": 5,
            "phases": {"forward": [1.0], "other": [1.0, 2.0]},
        },  # no line of ours
        ranks(30, 1.0, 1.0, 2.0, sent=8),
    ]
    write_lines(tmp_path / "events.jsonl", events)
    history = RunHistory.load(tmp_path)
    assert history.ranks is not None
    assert history.ranks.seconds == {"forward": [2.0, 3.0, 5.0]}
    assert (history.ranks.ranks, history.ranks.steps) == (3, 20)
    assert history.sent_bytes == {"ids": 15}
    assert [text for _, text in history.messages] == ["training began", "resume"]


def test_a_run_on_one_rank_or_of_an_earlier_version_has_no_times_of_ranks(tmp_path: Path) -> None:
    history = RunHistory.load(write_run(tmp_path, 20))
    assert history.ranks is None
    assert not history.sent_bytes


def merged_line(
    step: int, steps: int, bins: dict[int, int], *, least: float = 0.0, most: float = 1e9
) -> dict[str, object]:
    spread = {"least": least, "most": most, "bins": {str(number): count for number, count in bins.items()}}
    return step_line(step, steps=steps, last_step=step + steps - 1, spread={"seconds": spread})


def test_values_of_merged_lines_are_counted_by_value_and_those_taken_back_are_not(tmp_path: Path) -> None:
    lines = [
        merged_line(0, 5, {10: 2, 20: 3}),
        merged_line(5, 4, {10: 4}, least=1.3),  # which is more than the middle of its bin
        merged_line(9, 2, {30: 2}),
    ]
    write_lines(tmp_path / "steps.jsonl", lines)
    values, counts = RunHistory.load(tmp_path).values("seconds")
    whole = {bin_middle(10): 2.0, bin_middle(20): 3.0, 1.3: 4.0, bin_middle(30): 2.0}
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == whole
    write_lines(tmp_path / "steps.jsonl", [*lines, step_line(9, seconds=7.0)])
    values, counts = RunHistory.load(tmp_path).values("seconds")
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
        value: count for value, count in (whole | {7.0: 1.0}).items() if value != bin_middle(30)
    }


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_own_end(tmp_path: Path) -> None:
    path, thinned = tmp_path / "steps.jsonl", tmp_path / "thinned"
    write_lines(path, [merged_line(0, 4, {10: 4}), merged_line(4, 4, {20: 4}), merged_line(8, 2, {30: 2})])
    with path.open("a") as file:
        file.write("damaged\n")
    write_lines(tmp_path / "more", [step_line(8, seconds=7.0)])
    path.write_text(path.read_text() + (tmp_path / "more").read_text())
    write_lines(thinned, [merged_line(0, 10, {10: 4, 20: 4, 30: 2})])
    steps = read_steps(path, damaged=lambda _: thinned.replace(path) and None)
    values, counts = steps.spread["seconds"]
    assert not thinned.exists()
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {bin_middle(10): 4.0, bin_middle(20): 4.0}


def test_bins_of_many_merged_lines_take_the_memory_of_few(tmp_path: Path) -> None:
    bins = dict.fromkeys(range(-200, 200), 3)
    write_lines(tmp_path / "steps.jsonl", (merged_line(1200 * line, 1200, bins) for line in range(1500)))
    tracemalloc.start()
    try:
        values, counts = RunHistory.load(tmp_path).values("seconds")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(values), counts.sum()) == (400, 1500 * 1200)
    assert peak < 1500 * 400 * 8  # eight bytes for each number of each line
