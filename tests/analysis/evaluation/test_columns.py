"""The columns of a comparison against values by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from example_record import RECORD

from eepolicy.analysis.evaluation.columns import COLUMNS, Column

BY_NAME = {column.name: column for column in COLUMNS}
TIMED = replace(RECORD, seconds=0.9, ttft=0.4, speech_seconds=2.0)  # six tokens


@pytest.mark.parametrize(
    ("name", "top", "bottom"),
    [
        ("seconds", 0.9, 1),
        ("speedup", 0.9, 1),
        ("real_time_factor", 0.9, 2.0),
        ("ttft", 0.4, 1),
        ("tpot", 500.0, 5),  # the five later tokens take half a second
        ("speech_depth", 80, 4),
        ("wer", 0, 2),
    ],
)
def test_sums_by_hand(name, top, bottom):
    tops, bottoms = BY_NAME[name].sums([[TIMED]])
    assert (tops[0], bottoms[0]) == pytest.approx((top, bottom))


@pytest.mark.parametrize("name", ["seconds", "speedup", "real_time_factor", "ttft", "tpot"])
def test_a_reply_that_was_not_timed_does_not_count(name):
    untimed = replace(RECORD, seconds=None, ttft=None)
    tops, bottoms = BY_NAME[name].sums([[untimed], [untimed, TIMED]])
    assert (tops[0], bottoms[0]) == (0, 0)
    assert (tops[1], bottoms[1]) == tuple(x[0] for x in BY_NAME[name].sums([[TIMED]]))


def test_a_reply_of_one_token_has_no_time_per_later_token():
    one = replace(TIMED, tokens=[1])
    assert BY_NAME["tpot"].sums([[one]])[1][0] == 0


def test_columns_state_their_units():
    percent = [c.name for c in COLUMNS if c.heading.endswith("%")]
    assert [c.name for c in COLUMNS if c.scale == 100] == percent
    assert BY_NAME["ttft"].heading.endswith("ms")
    assert BY_NAME["ttft"].scale == 1000


def test_a_table_in_the_terminal_has_at_most_six_columns():
    places = {column.short for column in COLUMNS if column.short}
    assert len(places) + 2 <= 6  # and the policy and the verdict


def test_a_custom_column_is_not_in_the_short_table_by_default():
    assert Column("own", "own", lambda r: 1.0).short == ""
