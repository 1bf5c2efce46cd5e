"""The test against a margin: SciPy, arithmetic, and its error rates by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.verdicts import (
    CHANGED,
    EXCESSES,
    MARGIN,
    REALISTIC,
    influence_differences,
    right_answers,
)
from eepolicy import EepolicyError
from eepolicy.analysis.stats.noninferiority import margin_test

TABLES = 3000
#: three standard errors of a rate of 5 % in so many tables
ALLOWED = 0.05 + 3 * np.sqrt(0.05 * 0.95 / TABLES)


def test_without_bursts_it_is_scipys_t_test():
    x = np.random.default_rng(0).normal(0.1, 1, (4, 30))
    test = replace(margin_test(x, 0.3), burst=np.zeros(4))
    theirs = stats.ttest_1samp(x, 0.3, axis=1, alternative="less")
    np.testing.assert_allclose(test.p, theirs.pvalue, rtol=1e-12)
    np.testing.assert_allclose(
        test.upper(), theirs.confidence_interval(confidence_level=0.95).high, rtol=1e-12
    )


@given(st.integers(0, 10_000), st.integers(2, 60), st.floats(0.001, 0.2))
def test_the_upper_end_is_the_margin_at_the_level(seed, questions, level):
    rng = np.random.default_rng(seed)
    x = rng.choice([0, 0, 0, 0.1, -0.1, 2.0], questions)
    upper = float(margin_test(x, 1.0, unit=0.1).upper(level))
    if upper > 0:
        assert float(margin_test(x, upper, unit=0.1).p) == pytest.approx(level, rel=1e-6)


@pytest.mark.parametrize("questions", [24, 100, 300])
@pytest.mark.parametrize("excess", REALISTIC, ids=lambda e: e.name)
def test_a_policy_at_the_margin_is_found_not_worse_in_one_of_twenty(questions, excess):
    rng = np.random.default_rng(questions)
    x, unit = influence_differences(rng, (TABLES, questions), excess, MARGIN)
    assert x.mean() == pytest.approx(MARGIN, abs=0.002)
    test = margin_test(x, MARGIN, unit)
    assert (test.p <= 0.05).mean() <= ALLOWED
    # the level of the first of seven rows
    assert (test.p <= 0.05 / 7).mean() <= 0.05 / 7 + 3 * np.sqrt(0.0071 / TABLES)
    # the same interval covers the truth
    assert (test.upper() >= MARGIN).mean() >= 1 - ALLOWED
    # the opposite claim, that it is worse by more than the margin
    assert (1 - test.p <= 0.05).mean() <= ALLOWED


@pytest.mark.parametrize("questions", [24, 100, 300])
@pytest.mark.parametrize("changed", CHANGED)
def test_wrong_answers_at_the_margin_are_found_not_worse_in_one_of_twenty(questions, changed):
    rng = np.random.default_rng(questions)
    p = margin_test(right_answers(rng, (TABLES, questions), changed, 0.05), 0.05).p
    assert (p <= 0.05).mean() <= ALLOWED


def test_the_t_test_is_too_sure_of_few_questions_with_bursts():
    """The reason for the test: see the second row of the table in the docs."""
    x, unit = influence_differences(np.random.default_rng(1), (TABLES, 24), EXCESSES[1], MARGIN)
    ours = margin_test(x, MARGIN, unit)
    theirs = stats.ttest_1samp(x, MARGIN, axis=1, alternative="less").pvalue
    assert (theirs <= 0.05).mean() > ALLOWED > (ours.p <= 0.05).mean()


@pytest.mark.parametrize("questions", [10, 25, 32, 70, 160])
def test_equal_replies_prove_as_much_as_their_number_allows(questions):
    """If a tenth of the replies had one error more, so many would show none by chance."""
    p, exact = float(margin_test(np.zeros(questions), 0.01, unit=0.1).p), 0.9**questions
    assert (p <= 0.05) == (exact <= 0.05)
    assert p > 0.4 * exact


def test_the_suggested_number_of_questions_reaches_the_power():
    rng = np.random.default_rng(2)
    x, unit = influence_differences(rng, (1, 20_000), EXCESSES[1], 0.0)
    test = replace(margin_test(x[0], MARGIN, unit), loss=np.array(0.0), questions=100)
    more = test.more_questions()
    questions = 100 + int(more)
    again, _ = influence_differences(rng, (TABLES, questions), EXCESSES[1], 0.0)
    assert (margin_test(again, MARGIN, unit).p <= 0.05).mean() == pytest.approx(0.8, abs=0.03)


def test_a_loss_at_the_margin_needs_no_number_of_questions():
    test = margin_test([0.0, 0.04] * 20, 0.02)
    assert test.more_questions() == np.inf
    assert margin_test([-1e-3, 1e-3] * 500, 1.0).more_questions() == 0


@pytest.mark.parametrize(("losses", "margin"), [([1.0], 0.1), ([], 0.1), ([0, 1], 0), ([0, 1], -1)])
def test_mistakes_are_errors(losses, margin):
    with pytest.raises(EepolicyError, match="two questions or more and a margin above 0"):
        margin_test(losses, margin)
