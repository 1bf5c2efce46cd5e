"""Tests of paired differences, correction for many tests, and effect sizes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, rankdata

from eepolicy.analysis.stats.bootstrap import Floats

#: sign patterns computed at once, to bound memory
PATTERNS = 10_000


def sign_flip(differences: ArrayLike, resamples: int = 99_999, seed: int = 0) -> Floats:
    """Two-sided permutation test of paired differences: flips signs by document.

    Args:
        differences: (documents, ...); a document with nan counts as 0.
        resamples: number of random sign patterns.
        seed: seed of the sign patterns.

    Returns:
        p-values, (...), none below 1 / (resamples + 1).
    """
    array = np.nan_to_num(np.asarray(differences, float))
    flat = array.reshape(len(array), -1)
    rng = np.random.default_rng(seed)
    # sums in another order differ in their last digits, which must not decide a tie
    observed = np.abs(flat.sum(0)) * (1 - 1e-9) - 1e-300
    extreme = np.zeros(flat.shape[1], int)
    for start in range(0, resamples, PATTERNS):
        count = min(PATTERNS, resamples - start)
        signs = 2.0 * rng.integers(0, 2, (count, len(flat))) - 1.0
        extreme += (np.abs(signs @ flat) >= observed).sum(0)
    p: Floats = ((1 + extreme) / (1 + resamples)).reshape(array.shape[1:])
    return p


def holm(p: ArrayLike) -> Floats:
    """p-values adjusted for multiple tests (Holm 1979).

    Args:
        p: p-values of any shape.

    Returns:
        Adjusted p-values of the same shape.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    array = np.asarray(p, float)
    flat = array.ravel()
    order = np.argsort(flat)
    steps = flat[order] * (len(flat) - np.arange(len(flat)))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.reshape(array.shape)


def paired_effect(differences: ArrayLike) -> Floats:
    """Cohen's d of paired differences: their mean over their standard deviation.

    Args:
        differences: (documents, ...); nan is left out.

    Returns:
        (...).
    """
    array = np.asarray(differences, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect: Floats = np.nanmean(array, 0) / np.nanstd(array, 0, ddof=1)
    return effect


def superiority(first: ArrayLike, second: ArrayLike) -> float:
    """Probability that a value of the first exceeds one of the second; ties count half.

    This is the area under the ROC curve, and the Mann-Whitney statistic over its maximum.

    Args:
        first: (values,).
        second: (other values,).

    Returns:
        0 to 1; nan if either is empty.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if not len(a) or not len(b):
        return float("nan")
    ranks = rankdata(np.concatenate([a, b]))
    return float((ranks[: len(a)].sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def prompts_needed(differences: ArrayLike, power: float = 0.8, level: float = 0.05) -> float:
    """Number of prompts that a paired test needs to detect the observed mean difference.

    By the normal approximation, ((z_level + z_power) s / m)^2 + 2, with the mean m and standard
    deviation s of the differences; at least 6, because fewer prompts cannot give p < 0.05 in a
    sign-flip test.  The result is as uncertain as the observed difference.

    Args:
        differences: (prompts,); nan is left out.
        power: probability of detecting the difference.
        level: level of the two-sided test.

    Returns:
        Number of prompts; inf if the mean difference is 0, nan if there are fewer than 3 values.
    """
    array = np.asarray(differences, float)
    array = array[~np.isnan(array)]
    if len(array) < 3:
        return float("nan")
    mean, deviation = array.mean(), array.std(ddof=1)
    # a mean of 0 may differ from 0 in its last digits
    if abs(mean) <= 1e-9 * np.abs(array).max():
        return float("inf")
    z = norm.ppf(1 - level / 2) + norm.ppf(power)
    return float(max(6, 2 + math.ceil((z * deviation / mean) ** 2)))
