"""The table of a comparison against arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from example_record import RECORD
from hypothesis import given
from hypothesis import strategies as st

from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.columns import COLUMNS, Column
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.results_files import latex, markdown
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.analysis.stats.bootstrap import influences


def test_table_is_arithmetic(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    questions = [{"question": f"q{i}"} for i in range(4)]
    for i in range(4):
        full = replace(RECORD, question=f"q{i}", errors=i % 2, seconds=2.0)
        folder.append(full)
        folder.append(
            replace(full, policy="static@10", speech_layers=40, errors=1, seconds=1.0, mos=None)
        )
    folder.append(replace(RECORD, question="unasked", errors=2))
    full, static = Comparison(("full", "static@10"), tuple(questions), folder).table()
    assert (full["prompts"], full["wer"], full["speech_depth"]) == (4, 2 / 8, 20.0)
    assert (static["wer"], static["wer_diff"], static["speech_depth"]) == (4 / 8, 2 / 8, 10.0)
    assert static["seconds_diff"] == static["seconds_diff_low"] == -1.0
    assert static["mos"] is None
    assert static["mos_diff"] is None
    assert full["wer_low"] <= full["wer"] <= full["wer_high"]
    json.dumps([full, static], allow_nan=False)
    assert full["wer_p"] is None
    assert full.keys() == static.keys()
    # every prompt differs in seconds by as much: one of 2^4 sign patterns, and its mirror
    assert static["seconds_p"] == pytest.approx(2 / 16, abs=0.015)
    assert static["seconds_needed"] == 6
    assert static["mos_p"] is None


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
    if bottom.min() > 0:
        spread = (len(rest) - 1) / np.sqrt(len(rest)) * np.std(rest)
        assert np.std(influence) / np.sqrt(len(rest)) == pytest.approx(spread, rel=0.5)


def test_latex_holds_the_table():
    names = [column.name for column in COLUMNS]
    values = {n: 0.5 for n in names} | {f"{n}_{s}": 0.4 for n in names for s in ("low", "high")}
    rows = [{"policy": "full", **values}, {"policy": "spark:FE~@[12]", **values}]
    rows[1] |= {f"{n}_diff{s}": 0.1 for n in names for s in ("", "_low", "_high")}
    lines = latex(rows).splitlines()
    assert lines[4].startswith(r"\texttt{full} & 50.0 & ")
    assert lines[4].count("&") == len(COLUMNS)
    assert all(line.endswith(r"\\") for line in lines[4:-3])
    assert r"\texttt{spark:FE\textasciitilde{}@[12]}" in lines[6]


def test_a_table_without_answers_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    with pytest.raises(EepolicyError, match="no question that every policy has answered"):
        Comparison(("full",), ({"question": "q"},), folder).table()


def test_a_column_of_ones_own(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    for policy, seconds in (("full", 2.0), ("static@10", 3.0)):
        folder.append(replace(RECORD, policy=policy, speech_seconds=seconds))
    speech = Column("speech_length", "speech, ms", lambda r: r.speech_seconds, scale=1e3, digits=0)
    columns = (*COLUMNS, speech)
    comparison = Comparison(("full", "static@10"), ({"question": "q0"},), folder, columns)
    full, static = comparison.table()
    assert (full["speech_length"], static["speech_length_diff"]) == (2.0, 1.0)
    estimates, differences, _ = markdown([full, static], columns).split("\n\n")[::2]
    assert "speech, ms" in estimates.splitlines()[0]
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


def test_columns_state_their_units_and_optional_ones_are_hidden():
    assert [c.name for c in COLUMNS if c.scale == 100] == [
        c.name for c in COLUMNS if c.heading.endswith("%")
    ]
    assert "judge" not in markdown([{"policy": "full"} | {c.name: None for c in COLUMNS}] * 2)
