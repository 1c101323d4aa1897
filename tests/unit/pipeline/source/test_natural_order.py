"""The order that file names give: one order in time for all who read them, or an error."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.source.find import LOG_ENDINGS
from pipeline.source.natural_order import in_natural_order


def ordered(names: list[str], seed: int = 0) -> list[str]:
    return in_natural_order(random.Random(seed).sample(names, len(names)), where="log", endings=LOG_ENDINGS)


@pytest.mark.parametrize(
    "names",
    [
        ["day_1", "day_2", "day_10"],
        ["Day_1.TSV", "day_2.tsv", "DAY_10.Tsv.GZ"],
        ["1.tsv", "2.tsv.gz", "10.tsv.zst"],
        ["day_1_part_2", "day_1_part_10", "day_2_part_1"],
        ["v1.2", "v1.10", "v2.1"],
        ["2013-01-31.gz", "2013-02-01.gz", "2014-01-01.gz"],
        ["20130131", "20130201", "20140101"],
        ["2013_1_9", "2013_1_10", "2013_2_1"],
        ["201312", "201401"],
        ["14102100", "14102101", "14102200"],
        ["clicks.2013-01-02-03.a1b2", "clicks.2013-01-02-04.ffff0", "clicks.2013-01-03-00.9c"],
        ["2013-01-02_00-59-10", "2013-01-02_01-00-00", "2013-01-03_00-00-00"],
        ["jan", "feb", "mar"],
        ["log_January.csv", "log_February.csv", "log_may.csv", "log_November.csv"],
        ["nov-2012", "jan-2013", "feb-2013"],
        ["2012-nov", "2013-jan"],
        ["30-dec-2012", "1-jan-2013", "2-jan-2013", "1-feb-2013"],
        ["1-jan", "2-jan", "10-jan", "1-feb"],
        ["janvier", "février", "août", "octobre"],
        ["01-12-2013", "02-12-2013"],
        ["12-2012", "12-2013"],
        ["31122012", "31122013"],
        ["a", "b", "c"],
        ["part-00000-3f2a-c000.gz", "part-00001-3f2a-c000.gz", "part-00010-3f2a-c000.gz"],
        ["day_１", "day_２", "day_１０"],
        ["day_٢", "day_١٠"],
        ["2013-01-31-thu", "2013-02-01-fri", "2013-02-04-mon"],
        ["1_one", "2_two", "3_three"],
        ["2013Q4", "2014Q1"],
        ["2013-W05", "2013-W10", "2014-W01"],
    ],
)
def test_names_that_say_their_order(names: list[str]) -> None:
    for seed in range(3):
        assert ordered(names, seed) == names


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["31-01-2013", "01-02-2013"], "the day, the month or the year"),
        (["01/2013/x", "12/2012/x"], "the day, the month or the year"),
        (["31012013", "01022013"], "the day, the month or the year"),
        (["01312013", "02012012"], "the day, the month or the year"),
        (["012013", "122012"], "the day, the month or the year"),
        (["day-3-2013", "day-1-2014"], "the day, the month or the year"),
        (["31.01", "01.02"], "the day, the month or the year"),
        (["31-01-13", "01-02-13"], "the day, the month or the year"),
        (["310113", "010213"], "the day, the month or the year"),
        (["01-jan-13", "02-jan-12"], "the day, the month or the year"),
        (["jan", "feb", "dec"], "December and January without a year"),
        (["q4_2013", "q1_2014"], "the day, the month or the year"),
        (["nov", "dec", "jan"], "December and January without a year"),
        (["jan", "feb", "rest"], "'rest' among names of months"),
        (["mon", "tue"], "days of the week"),
        (["one", "two", "three"], "number words"),
        (["train", "test"], "names of splits"),
        (["1am", "1pm"], "halves of a day"),
        (["old", "new"], "words for time"),
        (["i", "ii", "v", "ix"], "Roman numbers"),
        (["day_1", "day_01"], "stand for the same place"),
        (["day_1.tsv", "day_1.tsv.gz"], "stand for the same place"),
        (["day_1", "day-1"], "stand for the same place"),
        (["day_1", "Day_1"], "stand for the same place"),
        (["day", "day_2"], "do not follow one pattern"),
        (["day_2", "day_two"], "do not follow one pattern"),
        (["log", "log_2013-01-02"], "do not follow one pattern"),
        (["day_-1", "day_0", "day_2"], "sign or a separator"),
        (["access.log", "access.log.1", "access.log.2.gz"], "rotated logs count backwards"),
        (["access_log.1", "access_log.2.gz"], "rotated logs count backwards"),
        (["clicks.tsv.1", "clicks.tsv.2", "clicks.tsv.10"], "rotated logs count backwards"),
    ],
)
def test_names_that_leave_their_order_open(names: list[str], why: str) -> None:
    for seed in range(3):
        with pytest.raises(InputError) as caught:
            ordered(names, seed)
        assert why in str(caught.value)
        assert str(caught.value).startswith("log: ")
        assert str(caught.value).endswith("name the files one by one, in the order of time")


@given(
    st.lists(st.text(alphabet="01279jan-_.é²Ⅳ٣\udcff/", min_size=1, max_size=9), min_size=1, max_size=6, unique=True)
)
def test_any_names_have_one_order_or_one_line(names: list[str]) -> None:
    def outcome(names: list[str]) -> list[str] | None:
        try:
            return in_natural_order(names, where="log", endings=LOG_ENDINGS)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return None

    found = outcome(names)
    assert found is None or sorted(found) == sorted(names)
    assert outcome(names[::-1]) == found


@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=8, unique=True))
def test_one_number_orders_as_numbers_do(numbers: list[int]) -> None:
    names = [f"day_{number}" for number in sorted(numbers)]
    try:
        assert ordered(names) == names
    except InputError as error:
        assert "the day, the month or the year" in str(error)  # noqa: PT017
        assert {len(str(number)) for number in numbers} <= {6, 8}
