"""The number of prompts that a test needs, where the mean is 0 up to rounding."""

from __future__ import annotations

import numpy as np

from eepolicy.analysis.stats.tests import prompts_needed


def test_a_mean_of_zero_up_to_rounding_needs_infinitely_many_prompts():
    differences = np.array([0.1, 0.2, -0.3] * 5)
    assert 0 < abs(differences.mean()) < 1e-16
    assert prompts_needed(differences) == np.inf
    assert prompts_needed([1e-17, 2e-17, 3e-17]) == 6  # small in all, but not zero
