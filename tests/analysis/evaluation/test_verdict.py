"""Verdicts: sentences by hand, decisions against their error rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from example_record import RECORD

from benchmarks.verdicts import EXCESSES, MARGIN, influences_of, whole_tables
from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.columns import COLUMNS, Column
from eepolicy.analysis.evaluation.estimates import ColumnSums
from eepolicy.analysis.evaluation.verdict import (
    DECIDING,
    Decision,
    Margins,
    Rules,
    decide,
    rounded_up,
    savings,
    verdicts,
)
from eepolicy.analysis.stats.noninferiority import margin_test
from eepolicy.analysis.stats.sequential import UntilDecided
from eepolicy.analysis.stats.tests import holm

BY_NAME = {column.name: column for column in COLUMNS}
WER = DECIDING[0]


def table(replies, columns=COLUMNS):
    """Rows and sums of policies: a list of changes of the example record for each."""
    records = [[[replace(RECORD, **change)] for change in policy] for policy in replies]
    by_prompt = [list(policies) for policies in zip(*records, strict=True)]
    sums = ColumnSums.of(columns, by_prompt)
    return [{"policy": str(i), **cells} for i, cells in enumerate(sums.cells())], sums


def sentences(replies, rules=None, columns=COLUMNS):
    rows, sums = table(replies, columns)
    return [v.sentence for v in verdicts(rows, sums, rules or Rules())]


def replies(errors, number=100, **changes):
    """So many replies of ten words, with errors in turn."""
    given = {"words": 10, "mos": None, "seconds": None} | changes
    return [{"errors": errors[i % len(errors)]} | given for i in range(number)]


FULL = replies([0, 0, 0, 1])


def test_a_policy_that_saves_and_is_not_worse():
    full = replies([0, 0, 0, 1], layer_calls=100, seconds=1.0)
    early = replies([0, 0, 0, 1], layer_calls=84, seconds=0.88)
    assert sentences([full, early]) == [
        "full depth, the baseline",
        "saves 16 % of layer calls and 12 % of the time; WER not worse than full depth by more "
        "than 2 points (p < 0.001); accuracy not worse by more than 5 points",
    ]


def test_a_policy_that_is_worse():
    results = sentences([FULL, replies([3, 2, 3, 4], right_speech=False)])
    assert results[1] == (
        "runs as many layer calls as full depth; WER worse than full depth by more than 2 points "
        "(p < 0.001); accuracy worse by more than 5 points"
    )


@pytest.mark.parametrize(
    ("errors", "number", "words"),
    [
        ([0, 1, 0, 0, 0, 1, 0, 0], 40, "WER undecided: about 55 more questions"),
        ([1, 0, 1, 0, 0, 1, 0, 1], 40, "WER undecided: the difference is at or over the margin"),
        ([0, 1, 0, 0, 0, 0, 0, 1], 1, "WER undecided: too few replies have a value"),
    ],
)
def test_an_undecided_policy(errors, number, words):
    """By hand for the first: t = 0.02 / sqrt((0.00513 + 0.001) / 40) = 1.62, and 2.49 is needed."""
    full, early = replies([0, 0, 0, 1, 0, 0, 1, 0], number), replies(errors, number)
    results = sentences([full, early])[1]
    assert results.split("; ")[1] == words


def test_a_difference_close_to_the_margin_gets_no_absurd_number():
    """10,000 questions are the most that a sentence names."""
    early = [0] * 49 + [1]
    (_, verdict) = verdicts(
        *table([replies([0] * 50, 500), replies(early, 500)]), Rules(Margins(wer=0.201))
    )
    assert verdict.sentence.split("; ")[1] == "WER undecided: the difference is close to the margin"
    assert verdict.needed is None
    assert verdict.decisions["wer"].needed > 10_000


def test_text_accuracy_decides_without_speech_recognition():
    silent = {"errors": None, "words": None, "right_speech": None}
    full = [RECORD_TEXT | silent for _ in range(60)]
    wrong = [RECORD_TEXT | silent | {"right_text": i % 2 == 0} for i in range(60)]
    results = sentences([full, wrong])[1]
    assert results == (
        "runs as many layer calls as full depth; accuracy in text worse than full depth by more "
        "than 5 points (p < 0.001)"
    )
    unscored = [reply | {"right_text": None} for reply in full]
    assert sentences([unscored, unscored])[1] == (
        "runs as many layer calls as full depth; quality not measured"
    )


RECORD_TEXT = {"mos": None, "seconds": None}


@pytest.mark.parametrize(
    ("calls", "speedup", "words"),
    [
        (84, (1.136, 1.1, 1.2), "saves 16 % of layer calls and 12 % of the time"),
        (84, (0.96, 0.9, 0.99), "saves 16 % of layer calls but costs 4 % more time"),
        (84, (1.01, 0.95, 1.1), "saves 16 % of layer calls, no measurable difference in time"),
        (84, None, "saves 16 % of layer calls"),
        (104, (0.96, 0.9, 0.99), "costs 4 % more layer calls and 4 % more time"),
        (
            100,
            (1.25, 1.1, 1.4),
            "runs as many layer calls as full depth but saves 20 % of the time",
        ),
        (None, (1.25, 1.1, 1.4), "saves 20 % of the time"),
        (None, None, ""),
    ],
)
def test_savings_in_words(calls, speedup, words):
    row = dict(zip(("speedup", "speedup_low", "speedup_high"), speedup or [None] * 3, strict=True))
    assert savings({"layer_calls": 100}, row | {"layer_calls": calls}) == words


def test_a_lower_margin_is_harder_to_show():
    early = replies([0, 0, 1, 0])
    strict, loose = (
        verdicts(*table([FULL, early]), Rules(Margins(wer=wer)))[1] for wer in (0.5, 8.0)
    )
    assert (strict.status, loose.status) == ("undecided", "not worse")
    assert strict.upper == loose.upper
    assert "by more than 8 points" in loose.sentence
    assert loose.upper < 0.08


def test_holm_counts_the_other_rows():
    rows = [FULL, replies([0, 0, 1, 0])]
    alone, among = (
        verdicts(*table(rows[:1] + rows[1:] * n), Rules(Margins(wer=5.0)))[1] for n in (1, 3)
    )
    assert among.p == pytest.approx(3 * alone.p)


def test_no_row_is_decided_before_the_first_look():
    rules = Rules(looks=UntilDecided((150, 200)))
    (_, verdict) = verdicts(*table([FULL, replies([3, 2, 3, 4])]), rules)
    assert (verdict.status, verdict.p) == ("undecided", None)
    assert "the first test is at 150 questions" in verdict.sentence


def test_a_row_decided_at_a_look_stays_decided():
    early = replies([3, 2, 3, 4]) + replies([0], 100)
    rules = Rules(looks=UntilDecided((100, 200)))
    (_, verdict) = verdicts(*table([FULL + FULL, early]), rules)
    assert verdict.status == "worse"
    # the correction for two looks makes the p-value larger than that of the first look alone
    (_, first) = verdicts(*table([FULL, early[:100]]), Rules())
    assert verdict.p > first.p


@pytest.mark.parametrize("excess", EXCESSES[:2], ids=lambda e: e.name)
@pytest.mark.parametrize("questions", [100, 300])
def test_a_table_has_a_wrong_verdict_in_one_of_twenty(questions, excess):
    """Seven rows together, one of them at the margin twice; three standard errors allowed."""
    wrong, decided = whole_tables(1500, excess, questions)
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)
    assert decided > (0.4 if questions == 300 else 0.05)


def test_decisions_are_those_of_the_simulated_rule():
    """`whole_tables` simulates `decide`: both give the same p-values."""
    rng = np.random.default_rng(0)
    words = rng.integers(4, 14, 80).astype(float)
    errors = rng.integers(0, 3, (4, 80)).astype(float)
    x = influences_of(errors[1:] - errors[0], words)
    p = margin_test(x, MARGIN, 1 / words.mean()).p
    results = decide([(e, words) for e in errors], BY_NAME["wer"], WER, Rules())
    assert results[0] == Decision("baseline")
    np.testing.assert_allclose([d.p for d in results[1:]], holm(np.minimum(p, 1 - p)), rtol=1e-6)


def test_columns_without_the_qualities_give_the_savings_only():
    columns = (Column("layer_calls", "layer calls", lambda r: r.layer_calls),)
    full = replies([0], layer_calls=10)
    early = replies([0], layer_calls=5)
    assert sentences([full, early], columns=columns)[1] == (
        "saves 50 % of layer calls; quality not measured"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wer", 0),
        ("wer", -1.0),
        ("wer", 101),
        ("wer", None),
        ("mos", 5),
        ("mos", "0.1"),
        ("accuracy", float("nan")),
        ("accuracy", True),
    ],
)
def test_margins_have_ranges(name, value):
    with pytest.raises(EepolicyError, match=f"the margin of {name} is a number above 0"):
        Margins(**{name: value})


def test_counts_are_rounded_up_to_two_digits():
    assert [rounded_up(n) for n in (1, 99, 100, 101, 1799.5)] == [1, 99, 100, 110, 1800]


def test_a_policy_without_text_is_not_called_not_worse():
    """Half of its replies have no words in their text, but word errors."""
    silent = [
        change | ({"errors": 5, "words": 0} if i % 2 else {"errors": 0})
        for i, change in enumerate(FULL)
    ]
    rows, sums = table([FULL, silent])
    [_, verdict] = verdicts(rows, sums, Rules())
    assert verdict.status == "worse"
    unrated = [change | {"mos": 3.0} for change in FULL]
    some = [change | {"mos": 3.0 if i % 2 else None} for i, change in enumerate(FULL)]
    assert "MOS undecided" in sentences([unrated, some])[1]
