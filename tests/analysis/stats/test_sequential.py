"""Repeated looks: published boundaries, SciPy's normal distribution, and error rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from benchmarks.verdicts import EXCESSES, LEVEL, sequential
from eepolicy import EepolicyError
from eepolicy.analysis.stats.sequential import UntilDecided, crossing_probability


@pytest.mark.parametrize(
    ("shape", "constant", "bounds"),
    [
        (0.5, 2.413, [2.413] * 5),  # Pocock 1977
        (0.0, 2.040, [4.562, 3.226, 2.634, 2.281, 2.040]),  # O'Brien and Fleming 1979
    ],
)
def test_boundaries_are_the_published_ones(shape, constant, bounds):
    """Jennison and Turnbull 2000, tables 2.1 and 2.3: five looks, two-sided level 0.05."""
    rule = UntilDecided((10, 20, 30, 40, 50), level=0.025, shape=shape)
    computed = [norm.isf(rule.level_at(look)) for look in rule.looks]
    np.testing.assert_allclose(computed, bounds, atol=0.003)
    assert computed[-1] == pytest.approx(constant, abs=0.003)


@pytest.mark.parametrize("bounds", [[2.2] * 4, [4.0, 3.0, 2.5, 2.0], [0.5] * 4, [9.0] * 4])
def test_the_crossing_probability_is_scipys(bounds):
    looks = [100, 130, 250, 300]
    correlation = np.sqrt(np.minimum.outer(looks, looks) / np.maximum.outer(looks, looks))
    theirs = 1 - multivariate_normal(cov=correlation, abseps=1e-7, releps=1e-7).cdf(bounds)
    assert crossing_probability(bounds, looks) == pytest.approx(theirs, abs=2e-6)


@pytest.mark.parametrize("shape", [0.0, 0.25, 0.5])
def test_the_corrected_p_value_meets_the_level_at_the_boundary(shape):
    rule = UntilDecided((50, 100, 300), shape=shape)
    for i, look in enumerate(rule.looks):
        p = [0.5] * i + [rule.level_at(look)]
        assert rule.corrected(p) == pytest.approx(0.05, abs=1e-6)
        assert rule.corrected([*p, *[0.9] * (2 - i)]) == rule.corrected(p)
    assert rule.corrected([0.001]) < rule.corrected([0.01])
    np.testing.assert_allclose(rule.corrected([[0.7], [0.01]])[0], 1.0)


def test_one_look_corrects_nothing():
    assert UntilDecided((100,)).corrected([0.03]) == pytest.approx(0.03)
    assert UntilDecided((100,)).level_at(100) == pytest.approx(0.05)


def test_looking_five_times_keeps_the_level_only_with_the_correction():
    rng, rule = np.random.default_rng(0), UntilDecided()
    sums = rng.normal(size=(20_000, 300)).cumsum(1)
    p = np.stack([norm.sf(sums[:, n - 1] / np.sqrt(n)) for n in rule.looks], 1)
    levels = np.array([rule.level_at(look) for look in rule.looks])
    assert (p <= levels).any(1).mean() == pytest.approx(0.05, abs=0.005)
    assert (p <= 0.05).any(1).mean() > 0.10


@pytest.mark.parametrize("excess", EXCESSES[:2], ids=lambda e: e.name)
def test_word_errors_at_the_margin_are_decided_in_one_of_twenty(excess):
    computed = sequential(UntilDecided(), 3000, excess, LEVEL)
    assert computed.error <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 3000)
    fixed = sequential(UntilDecided((300,)), 3000, excess, LEVEL)
    assert fixed.power - 0.05 < computed.power <= fixed.power
    assert computed.questions < 260


def test_the_next_look():
    rule = UntilDecided((100, 200))
    assert [rule.next_look(n) for n in (0, 99, 100, 150, 200)] == [100, 100, 200, 200, None]
    assert (rule.passed(99), rule.passed(100), rule.passed(500)) == ((), (100,), (100, 200))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: UntilDecided(()), "looks are ascending"),
        (lambda: UntilDecided((200, 100)), "looks are ascending"),
        (lambda: UntilDecided((1, 100)), "the first at least 2"),
        (lambda: UntilDecided(level=0.0), "the level is 0 to 0.5"),
        (lambda: UntilDecided(shape=0.6), "the shape 0 to 0.5"),
        (lambda: UntilDecided().level_at(120), "a look is one of"),
        (lambda: UntilDecided().corrected([]), "expected 1 to 5 p-values; got 0"),
        (lambda: UntilDecided((9,)).corrected([0.1, 0.1]), "expected 1 to 1 p-values; got 2"),
    ],
)
def test_mistakes_are_errors(make, match):
    with pytest.raises(EepolicyError, match=match):
        make()
