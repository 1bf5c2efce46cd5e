"""Tests of differences between documents, and what many of them at once ask for."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


#: sign patterns that are held at once
PATTERNS = 10_000


def sign_flip(differences: ArrayLike, resamples: int = 99_999, seed: int = 0) -> Floats:
    """Two-sided permutation test of paired differences: signs are flipped by document.

    Args:
        differences: (documents, ...); a document with nan counts nothing.
        resamples: sign patterns that are drawn.
        seed: of the drawing.

    Returns:
        (...) p-values, none below 1 / (resamples + 1).
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
    """p-values adjusted for being many (Holm 1979): any shape, kept."""
    array = np.asarray(p, float)
    flat = array.ravel()
    order = np.argsort(flat)
    steps = flat[order] * (len(flat) - np.arange(len(flat)))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.reshape(array.shape)


def paired_effect(differences: ArrayLike) -> Floats:
    """Cohen's d, the mean of paired differences over their deviation: (documents, ...) -> (...)."""
    array = np.asarray(differences, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect: Floats = np.nanmean(array, 0) / np.nanstd(array, 0, ddof=1)
    return effect


def superiority(first: ArrayLike, second: ArrayLike) -> float:
    """How often a value of the first is above one of the second, ties counting half.

    The area under the ROC curve, and the Mann-Whitney statistic over its highest value.

    Args:
        first: (values,).
        second: (other values,).

    Returns:
        0 to 1; nan where one of them is empty.
    """
    from scipy.stats import rankdata

    a, b = np.asarray(first, float), np.asarray(second, float)
    if not len(a) or not len(b):
        return float("nan")
    ranks = rankdata(np.concatenate([a, b]))
    return float((ranks[: len(a)].sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def prompts_needed(differences: ArrayLike, power: float = 0.8, level: float = 0.05) -> float:
    """Prompts that a paired test needs to find a mean difference as large as the one seen.

    By the normal approximation, ((z_level + z_power) s / m)^2 with the mean m and deviation s of
    the differences, and two more; at least 6, below which no sign-flip test reaches 0.05.  It is
    as uncertain as the difference that was seen.

    Args:
        differences: (prompts,).
        power: chance of finding it.
        level: of the two-sided test.

    Returns:
        Their number; inf where there is no difference, nan where there are too few to say.
    """
    from scipy.stats import norm

    array = np.asarray(differences, float)
    array = array[~np.isnan(array)]
    if len(array) < 3:
        return float("nan")
    mean, deviation = array.mean(), array.std(ddof=1)
    if mean == 0:
        return float("inf")
    z = norm.ppf(1 - level / 2) + norm.ppf(power)
    return float(max(6, 2 + math.ceil((z * deviation / mean) ** 2)))
