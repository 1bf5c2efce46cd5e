"""The table of a comparison against arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from html import escape
from time import process_time

import numpy as np
import pytest
from example_record import RECORD, store
from hypothesis import given
from hypothesis import strategies as st

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.columns import COLUMNS, Column
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.results_files import latex, markdown, short_table
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.analysis.stats.bootstrap import influences
from eepolicy.analysis.stats.sequential import UntilDecided


def test_table_is_arithmetic(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    questions = [{"question": f"q{i}"} for i in range(4)]
    for i in range(4):
        full = replace(RECORD, question=f"q{i}", errors=i % 2, seconds=2.0)
        exits = {"policy": "static@10", "depths": [20, 20, 10, 10, 10, 10], "seconds": 1.0}
        store(folder, [full, replace(full, **exits, errors=1, mos=None)])
    store(folder, [replace(RECORD, question="unasked", errors=2)])
    full, static = Comparison(("full", "static@10"), tuple(questions), folder).table()
    assert (full["prompts"], full["wer"], full["speech_depth"]) == (4, 2 / 8, 20.0)
    assert (static["wer"], static["wer_diff"], static["speech_depth"]) == (4 / 8, 2 / 8, 10.0)
    assert static["seconds_diff"] == static["seconds_diff_low"] == -1.0
    assert static["mos"] is None
    assert static["mos_diff"] is None
    assert full["wer_low"] <= full["wer"] <= full["wer_high"]
    # full depth takes twice as long on every question
    assert static["speedup"] == static["speedup_low"] == static["speedup_high"] == 2.0
    assert full["speedup"] == 1.0
    assert static["speedup_diff"] is static["speedup_p"] is None
    assert (full["status"], static["status"]) == ("baseline", "undecided")
    assert static["wer_upper"] > static["wer_diff"]
    json.dumps([full, static], allow_nan=False)
    assert full["wer_p"] is None
    assert full.keys() == static.keys()
    # every prompt differs in seconds by as much: one of 2^4 sign patterns, and its mirror
    assert static["seconds_p"] == pytest.approx(2 / 16, abs=0.015)
    assert static["seconds_needed"] == 6
    assert static["mos_p"] is None


def test_a_notebook_shows_the_short_table(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    store(folder, [RECORD, replace(RECORD, policy="<b>@10")])
    comparison = Comparison(("full", "<b>@10"), ({"question": RECORD.question},), folder)
    shown = comparison._repr_html_()
    headings, *lines = short_table(comparison.table())
    for text in (*headings, *(cell for line in lines for cell in line)):
        assert f">{escape(text)}</t" in shown
    assert "<b>@10" not in shown
    unanswered = Comparison(("full", "static@10"), ({"question": RECORD.question},), folder)
    assert "no question that every policy has answered yet" in unanswered._repr_html_()


@given(st.integers(0, 100))
def test_influences_add_up_to_the_ratio(seed):
    rng = np.random.default_rng(seed)
    bottom = rng.integers(0, 9, 12).astype(float)
    bottom[0] = 3
    top = rng.binomial(bottom.astype(int), 0.3).astype(float)
    influence = influences(top, bottom)
    assert np.nanmean(influence) == pytest.approx(top.sum() / bottom.sum())
    assert np.isnan(influence).tolist() == (bottom == 0).tolist()
    # the jackknife gives the same to the first order
    rest = [(top.sum() - t) / (bottom.sum() - b) for t, b in zip(top, bottom, strict=True)]
    without = bottom > 0  # prompts that do not count change nothing, whatever their numerators
    filled = np.where(without, top, 5.0)
    np.testing.assert_allclose(influences(filled, bottom), influence)
    np.testing.assert_allclose(influences(top[without], bottom[without]), influence[without])
    if bottom.min() > 0:
        spread = (len(rest) - 1) / np.sqrt(len(rest)) * np.std(rest)
        assert np.std(influence) / np.sqrt(len(rest)) == pytest.approx(spread, rel=0.5)


def test_a_table_without_answers_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    with pytest.raises(EepolicyError, match="no question that every policy has answered"):
        Comparison(("full",), ({"question": "q"},), folder).table()


def test_a_custom_column_appears_in_markdown_and_latex(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    for policy, seconds in (("full", 2.0), ("static@10", 3.0)):
        store(folder, [replace(RECORD, policy=policy, speech_seconds=seconds)])
    speech = Column("speech_length", "speech, ms", lambda r: r.speech_seconds, scale=1e3, digits=0)
    columns = (*COLUMNS, speech)
    comparison = Comparison(("full", "static@10"), ({"question": "q0"},), folder, columns)
    full, static = comparison.table()
    assert (full["speech_length"], static["speech_length_diff"]) == (2.0, 1.0)
    estimates, differences = markdown([full, static], columns).split("Difference from full depth")
    assert "speech, ms" in estimates
    assert "2000 [2000, 2000]" in estimates
    assert "+1000 [+1000, +1000]" in differences
    assert "speech, ms" in latex([full, static], columns)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (lambda: (*COLUMNS, COLUMNS[0]), "two columns have the name 'accuracy_speech'"),
        (lambda: (replace(COLUMNS[0], name="a"), COLUMNS[0]), "two columns have the heading"),
        (lambda: (replace(COLUMNS[0], name="a b"),), "is an identifier; got 'a b'"),
        (lambda: (replace(COLUMNS[0], better="more"),), "better is 'higher' or 'lower'"),
        (lambda: (replace(COLUMNS[0], plot="bar"),), "plot is 'quality', 'cost' or None"),
    ],
)
def test_mistakes_in_columns_are_errors(tmp_path, columns, match):
    with pytest.raises(EepolicyError, match=match):
        Comparison(("full",), (), RunFolder(tmp_path), columns())


def test_only_timed_questions_count_for_time(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    questions = tuple({"question": f"q{i}"} for i in range(6))
    for i in range(6):
        for policy, seconds, ttft in (("full", 2.0 + i, 0.5), ("static@10", 1.0 + i, 0.25)):
            timed = {"seconds": seconds, "ttft": ttft} if i < 2 else {"seconds": None}
            store(folder, [replace(RECORD, question=f"q{i}", policy=policy, **timed)])
    full, static = Comparison(("full", "static@10"), questions, folder).table()
    assert static["prompts"] == 6
    assert static["seconds"] == 1.5
    assert static["speedup"] == pytest.approx((2 + 3) / (1 + 2))
    # 2 / 1 and 3 / 2 are the speed-ups of the two timed questions
    assert (static["speedup_low"], static["speedup_high"]) == (1.5, 2.0)
    assert static["real_time_factor"] == 1.5
    assert (full["ttft"], static["ttft"]) == (0.5, 0.25)
    assert full["tpot"] == pytest.approx((1500 + 2500) / (5 + 5))


def test_eight_rows_of_300_questions_take_less_than_3_seconds(tmp_path, monkeypatch):
    rng, policies = np.random.default_rng(0), ("full", *(f"static@{i}" for i in range(10, 17)))
    records = {
        (f"q{i}", policy): [
            replace(RECORD, question=f"q{i}", policy=policy, errors=int(rng.integers(0, 3)))
        ]
        for i in range(300)
        for policy in policies
    }
    folder = RunFolder(tmp_path)
    monkeypatch.setattr(folder, "records", lambda: records)
    questions = tuple({"question": f"q{i}"} for i in range(300))
    started = process_time()
    rows = Comparison(policies, questions, folder, looks=UntilDecided()).table()
    assert process_time() - started < 3
    assert [row["status"] for row in rows] != ["undecided"] * 8
