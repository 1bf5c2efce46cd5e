"""Scoring, intervals, calibration and the run folder against references and arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eepolicy import Confidence, EepolicyError, Entropy
from eepolicy.analysis.evaluation.plots import pareto
from eepolicy.analysis.evaluation.records import Record, RunFolder
from eepolicy.analysis.evaluation.report import COLUMNS, latex
from eepolicy.analysis.evaluation.run import influences, table
from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.analysis.evaluation.threshold_matching import first_passing_depth, matched_policy
from eepolicy.analysis.stats.bootstrap import paired_difference, ratio
from eepolicy.probing import ProbeResult


@pytest.mark.parametrize(
    ("text", "keys", "right"),
    [
        ("The capital of France is Paris.", ["is Paris"], True),
        ("the capital of france is parish", ["is Paris"], False),
        ("Three plus five is 8.", ["is eight"], True),
        ("Three plus five is eighteen.", ["is eight"], False),
        ("No, snow is white.", ["no", "is white"], True),
        ("Now, snow is white.", ["no", "is white"], False),
    ],
)
def test_right_answers(text, keys, right):
    assert is_right(text, keys) is right


def levenshtein(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, above = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@given(*[st.lists(st.sampled_from(["cat", "dog", "sees", "a"]), max_size=8)] * 2)
def test_word_errors_are_the_edit_distance(wanted, heard):
    errors, words = word_errors(" ".join(wanted), " ".join(heard))
    # the normaliser drops no word of this vocabulary
    assert words == len(wanted)
    assert errors == (levenshtein(wanted, heard) if wanted else len(heard))


def test_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(1).normal(3, 2, 80)
    ours = ratio(values, np.ones(80))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=1)
    assert ours.value == pytest.approx(values.mean())
    # two bootstraps of 2000 and 5000 resamples: measured difference below 0.03
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.08)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.08)


def test_interval_covers_the_truth_at_its_rate():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        words = rng.integers(5, 12, 60)
        errors = rng.binomial(words, 0.2)
        found = ratio(errors, words)
        hits += found.low <= 0.2 <= found.high
    # 95 % nominal; the percentile bootstrap of 60 prompts gave 93 % here, binomial sd 1.7 %
    assert 0.88 <= hits / 200 <= 0.99


def test_paired_difference_is_narrower_than_unpaired():
    rng = np.random.default_rng(3)
    full = rng.normal(0, 5, 50)
    other = full + rng.normal(1, 0.1, 50)
    found = paired_difference((other, full), (np.ones(50), np.ones(50)))
    assert found.value == pytest.approx((other - full).mean())
    assert (
        found.high - found.low < 0.1 < ratio(full, np.ones(50)).high - ratio(full, np.ones(50)).low
    )


def test_nothing_measured_is_nan():
    assert np.isnan(ratio([1.0, 2.0], [0.0, 0.0]).value)


@given(st.integers(0, 1000))
def test_first_passing_depth_against_a_loop(seed):
    passing = np.random.default_rng(seed).random((3, 10)) < 0.3
    depths = (4, 7, 9)
    expected = [
        next((d for d, row in zip(depths, passing, strict=True) if row[t]), 12) for t in range(10)
    ]
    assert first_passing_depth(passing, depths, 12).tolist() == expected


@pytest.mark.parametrize("kind", [Entropy, Confidence])
def test_matched_policy_hits_its_target(kind):
    rng = np.random.default_rng(4)
    falling = np.sort(rng.random((12, 3000)), axis=0)[::-1]
    columns = {
        "modality": np.ones(3000, int),
        "token": np.zeros(3000, int),
        "entropy": falling.T.astype(np.float32),
        "confidence": 1 - falling.T.astype(np.float32),
    }
    probe = ProbeResult(np.arange(1, 13), columns, full_depth=12, vocabulary=60)
    policy = matched_policy(kind, probe, (4, 6, 8, 10), 9.0)
    values = getattr(probe, policy.name)[[3, 5, 7, 9]]
    passing = values < policy.threshold if kind is Entropy else values > policy.threshold
    # 401 candidate thresholds on 12,000 values: measured distance 0.01 layers
    assert first_passing_depth(passing, (4, 6, 8, 10), 12).mean() == pytest.approx(9.0, abs=0.05)


RECORD = Record(
    question="q0",
    policy="full",
    text="a b",
    heard="a b",
    right_text=True,
    right_speech=True,
    errors=0,
    words=2,
    mos=2.0,
    ended=True,
    seconds=1.0,
    speech_seconds=1.0,
    text_tokens=2,
    speech_tokens=4,
    text_layers=40,
    speech_layers=80,
    layer_calls=120,
    readouts=6,
    tokens=[1] * 6,
    depths=[20] * 6,
    modalities=[0, 0, 1, 1, 1, 1],
)


def test_a_run_goes_on_after_a_cut_line(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.open({"model": "m"}) == {}
    folder.append(RECORD)
    folder.append(replace(RECORD, question="q1"))
    file = folder.path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-40])  # the machine went down in the middle of a line
    assert list(folder.records()) == [("q0", "full")]
    folder.append(replace(RECORD, question="q2"))
    assert [q for q, _ in folder.records()] == ["q0", "q2"]
    file.write_text("no record\n" + file.read_text())
    with pytest.raises(EepolicyError, match=r"line 1 of .* is no record"):
        folder.records()
    file.write_text(file.read_text().removeprefix("no record\n"))
    folder.note(rows=["full"])
    assert folder.open({"model": "m"}) == {"rows": ["full"]}


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(EepolicyError, match="holds files that are no run of ours"):
        RunFolder(tmp_path).open({})
    folder = RunFolder(tmp_path / "run")
    folder.open({"model": "m", "heads": "a"})
    with pytest.raises(EepolicyError, match="holds a run with another heads"):
        folder.open({"model": "m", "heads": "b"})
    (folder.path / "run.json").write_text("{")
    with pytest.raises(EepolicyError, match="cannot be read"):
        folder.open({"model": "m"})


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
    full, static = table(["full", "static@10"], questions, folder)
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
    found = influences(top, bottom)
    assert np.nanmean(found) == pytest.approx(top.sum() / bottom.sum())
    assert np.isnan(found).tolist() == (bottom == 0).tolist()
    # the jackknife, another way to them, to the first order
    rest = [(top.sum() - t) / (bottom.sum() - b) for t, b in zip(top, bottom, strict=True)]
    if bottom.min() > 0:
        spread = (len(rest) - 1) / np.sqrt(len(rest)) * np.std(rest)
        assert np.std(found) / np.sqrt(len(rest)) == pytest.approx(spread, rel=0.5)


def test_latex_holds_the_table():
    columns = {n: 0.5 for n in COLUMNS} | {
        f"{n}_{s}": 0.4 for n in COLUMNS for s in ("low", "high")
    }
    rows = [{"policy": "full", **columns}, {"policy": "entropy<0.5@[12]", **columns}]
    rows[1] |= {f"{n}_diff{s}": 0.1 for n in COLUMNS for s in ("", "_low", "_high")}
    lines = latex(rows).splitlines()
    assert lines[4].startswith(r"\texttt{full} & 50.0 & ")
    assert lines[4].count("&") == len(COLUMNS)
    assert all(line.endswith(r"\\") for line in lines[4:-3])


def test_a_table_without_answers_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    with pytest.raises(EepolicyError, match="no question that every policy has answered"):
        table(["full"], [{"question": "q"}], folder)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12),
    st.booleans(),
)
def test_the_front_is_what_nothing_beats(points, higher):
    costs, values = zip(*points, strict=True)
    sign = 1 if higher else -1
    beaten = [
        any(
            c <= costs[i] and sign * v >= sign * values[i] and (c, v) != points[i]
            for c, v in points
        )
        for i in range(len(points))
    ]
    front = pareto(costs, values, higher)
    assert {points[i] for i in front} == {p for p, b in zip(points, beaten, strict=True) if not b}
    assert [costs[i] for i in front] == sorted({costs[i] for i in front})


def test_repeats_are_counted_in_speech():
    record = replace(RECORD, tokens=[7, 7, 1, 1, 2, 2], modalities=[0, 0, 1, 0, 1, 1])
    assert record.repeats == 1  # 1, 2, 2
