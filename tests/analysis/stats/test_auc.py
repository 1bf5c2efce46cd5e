"""The area under the ROC curve against a plain count of pairs, and its intervals on simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from eepolicy.analysis.stats import bootstrap
from eepolicy.analysis.stats.auc import auc
from eepolicy.analysis.stats.tests import superiority

DOCUMENTS, ITEMS = 30, 20


@pytest.fixture
def few_resamples(monkeypatch):
    """Fewer resamples, which suffice for intervals of many simulations."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)


def simulated(seed: int, shift: float):
    """Clustered items: a document has its own level of the values and of the outcome."""
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(DOCUMENTS), ITEMS)
    positive = rng.random(len(document)) < rng.uniform(0.05, 0.3, DOCUMENTS)[document]
    level = rng.normal(0, 0.5, DOCUMENTS)[document]
    values = level + rng.normal(0, np.sqrt(0.75), len(document)) + shift * positive
    return values, positive, document


def test_the_value_is_the_share_of_pairs():
    values, positive, document = simulated(0, 0.3)
    values = values.round(1)  # with ties
    values[5] = np.nan
    known = ~np.isnan(values)
    expected = superiority(values[known & positive], values[known & ~positive])
    assert auc(values, positive, document).value == pytest.approx(expected, abs=1e-12)
    assert np.isnan(auc(values, np.zeros_like(positive), document).value)


def test_a_resample_is_the_plain_value_of_the_drawn_documents():
    """With two documents, the resamples are few and can be made by hand."""
    values = np.array([1.0, 2, 3, 0, 2, 5])
    positive = np.array([0, 1, 0, 1, 0, 1], bool)
    document = np.array([4, 4, 4, 9, 9, 9])
    by_hand = []
    for first, second in ((0, 0), (0, 1), (1, 1)):
        drawn = np.concatenate([np.arange(3) + 3 * first, np.arange(3) + 3 * second])
        chosen = positive[drawn]
        by_hand.append(superiority(values[drawn][chosen], values[drawn][~chosen]))
    interval = auc(values, positive, document)
    assert (interval.low, interval.high) == (min(by_hand), max(by_hand))


def test_a_known_effect_is_detected_and_covered(few_resamples):
    truth = norm.cdf(0.5 / np.sqrt(2))
    covered, detected = [], []
    for seed in range(40):
        interval = auc(*simulated(seed, 0.5))
        covered.append(interval.low <= truth <= interval.high)
        detected.append(interval.low > 0.5)
    assert np.mean(detected) >= 0.95
    assert np.mean(covered) >= 0.85  # 95 % in the long run


def test_without_an_effect_chance_is_excluded_rarely(few_resamples):
    outside = 0
    for seed in range(60):
        interval = auc(*simulated(seed, 0.0))
        outside += interval.low > 0.5 or interval.high < 0.5
    assert outside <= 9  # 3 in the long run
