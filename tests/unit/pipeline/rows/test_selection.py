from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipeline.rows.selection import WHOLE_GROUPS, RowSelection, hold_out

LOGS = {
    "one group": [1000],
    "few groups": [7, 7, 9] * 5 + [3],
    "runs": [100] * 90 + [3],
    "whole groups": [5] * 1300 + [2],
    "uneven": [1, 400, 2, 90] * 12,
    "two rows": [2],
}


def rows_of(selection: RowSelection, group_rows: list[int]) -> list[int]:
    starts = np.concatenate(([0], np.cumsum(group_rows))).tolist()
    found: list[int] = []
    for start, stop in pairwise(starts):
        taken = selection.rows_of(start, stop)
        found += range(start, stop) if taken is None else (start + taken.astype(int)).tolist()
    return found


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_both_parts_make_the_whole_and_have_no_row_in_common(log: str, share: float) -> None:
    group_rows = LOGS[log]
    kept = hold_out(group_rows, share=share, seed=3)
    bounds = np.concatenate(([0], np.cumsum(group_rows)))
    for selection in (kept, kept.others()):
        counted = np.histogram(rows_of(selection, group_rows), bins=bounds)[0]
        assert selection.counts(bounds).tolist() == counted.tolist()
    inside, outside = rows_of(kept, group_rows), rows_of(kept.others(), group_rows)
    assert sorted(inside + outside) == list(range(sum(group_rows)))
    assert inside == sorted(inside)
    if log != "whole groups":
        assert len(inside) == max(round(share * sum(group_rows)), 1)


@pytest.mark.parametrize("log", ["one group", "few groups", "runs", "whole groups"])
def test_the_share_comes_from_all_over_the_log(log: str) -> None:
    """Of every tenth that has several strata, about its share is held out."""
    group_rows = LOGS[log] * 10
    inside = np.array(rows_of(hold_out(group_rows, share=0.1, seed=8), group_rows))
    tenths = np.histogram(inside, bins=10, range=(0, sum(group_rows)))[0]
    assert tenths.min() > 0.5 * len(inside) / 10
    assert tenths.max() < 1.6 * len(inside) / 10


def test_whole_groups_are_held_out_where_the_share_makes_enough_of_them() -> None:
    group_rows = LOGS["whole groups"]
    counts = hold_out(group_rows, share=0.05, seed=0).counts(np.concatenate(([0], np.cumsum(group_rows))))
    assert {int(held) for held, rows in zip(counts, group_rows, strict=True) if held != rows} == {0}
    assert np.count_nonzero(counts) == round(0.05 * len(group_rows)) >= WHOLE_GROUPS


def test_runs_touch_few_groups() -> None:
    group_rows = LOGS["runs"]
    counts = hold_out(group_rows, share=0.05, seed=0).counts(np.concatenate(([0], np.cumsum(group_rows))))
    assert WHOLE_GROUPS / 2 < np.count_nonzero(counts) <= 2 * WHOLE_GROUPS


def test_which_rows_depends_on_the_seed_and_on_nothing_that_reads_them() -> None:
    group_rows = LOGS["few groups"]
    assert rows_of(hold_out(group_rows, share=0.1, seed=4), group_rows) == rows_of(
        hold_out(group_rows, share=0.1, seed=4), group_rows
    )
    assert len({tuple(rows_of(hold_out(group_rows, share=0.1, seed=seed), group_rows)) for seed in range(20)}) == 20


def test_every_row_is_as_likely_to_be_held_out_as_any_other() -> None:
    """4,000 seeds on 40 rows at 10 %: each count is binomial with a deviation of 19."""
    counts = np.zeros(40)
    for seed in range(4000):
        counts[rows_of(hold_out([40], share=0.1, seed=seed), [40])] += 1
    assert abs(counts - 400).max() < 5 * 19


def test_the_rows_of_a_seed_stay_what_they_are() -> None:
    """A run that is continued by a later version must not train on what it has probed with."""
    assert rows_of(hold_out([40, 41], share=0.1, seed=7), [40, 41]) == PINNED


PINNED = [5, 19, 27, 35, 48, 54, 68, 73]
