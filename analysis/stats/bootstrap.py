"""95 % percentile bootstrap intervals over prompts or documents.

Tokens of one document are not independent, so whole documents are resampled.  Every function here
takes sums per document and returns an `Interval` of the mean over all documents' items.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Value = TypeVar("Value", float, Floats)

RESAMPLES = 2000
#: bounds of a 95 % interval
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, eq=False)
class Interval(Generic[Value]):
    """One estimate, or an array of estimates, with 95 % intervals.

    Attributes:
        value: estimate, a number or an array of any shape.
        low: lower bound, of the same shape.
        high: upper bound, of the same shape.

    Example:
        >>> Interval(0.5, 0.25, 0.75).text(digits=1, scale=100)
        '50.0 [25.0, 75.0]'
    """

    value: Value
    low: Value
    high: Value

    def __getitem__(self, index: Any) -> Interval[Any]:
        return Interval(*(np.asarray(x)[index] for x in (self.value, self.low, self.high)))

    def scaled(self, scale: float) -> Interval[Value]:
        """The interval of the estimate times a positive number."""
        return Interval(scale * self.value, scale * self.low, scale * self.high)

    @property
    def bars(self) -> Floats:
        """Lengths of the error bars below and above the estimates: (2, ...)."""
        value, low, high = (np.asarray(x) for x in (self.value, self.low, self.high))
        return np.stack([value - low, high - value]).clip(0)

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        """A single estimate as a table cell; a dash for nan."""
        value, low, high = (float(scale * x) for x in (self.value, self.low, self.high))
        if np.isnan(value):
            return "–"
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


Intervals = Interval[Floats]


def resampled_weights(documents: int, seed: int) -> NDArray[np.int64]:
    """Number of times that each resample draws each document: (resamples, documents)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(documents, np.full(documents, 1 / documents), size=RESAMPLES)


def percentile_interval(value: Floats, resampled: Floats) -> Intervals:
    """The percentile bootstrap interval of an estimate.

    Args:
        value: estimate, (...).
        resampled: estimate on each resample, (resamples, ...).  A resample without any document
            that has the value is nan and is ignored.
    """
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(resampled, PERCENTILES, axis=0)
    if np.isnan(resampled).any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            low, high = np.nanpercentile(resampled, PERCENTILES, axis=0)
    return Interval(value, low, high)


def means(totals: Floats, counts: Floats, seed: int = 0) -> Intervals:
    """Means of items, resampled over documents.

    Args:
        totals: sum of the items of each document, (documents, ...).
        counts: number of items of each document, of the same shape.
        seed: seed of the resampling.

    Returns:
        Intervals of shape (...).
    """
    drawn = resampled_weights(len(totals), seed)
    value, resampled = _mean(totals, counts, drawn)
    return percentile_interval(value, resampled)


def mean_differences(
    first: tuple[Floats, Floats], second: tuple[Floats, Floats], seed: int = 0
) -> Intervals:
    """`means` of the first minus `means` of the second, paired: both use the same resamples.

    Args:
        first: totals and counts, (documents, ...) each.
        second: totals and counts of the same documents.
        seed: seed of the resampling.

    Returns:
        Intervals of shape (...).
    """
    return _paired(first, second, np.subtract, seed)


def mean_quotients(
    first: tuple[Floats, Floats], second: tuple[Floats, Floats], seed: int = 0
) -> Intervals:
    """`means` of the first over `means` of the second, paired: both use the same resamples.

    Args:
        first: totals and counts, (documents, ...) each.
        second: totals and counts of the same documents.
        seed: seed of the resampling.

    Returns:
        Intervals of shape (...); nan where the second mean is 0.
    """

    def quotient(top: Floats, bottom: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(bottom == 0, np.nan, top / bottom)

    return _paired(first, second, quotient, seed)


def _paired(
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    combine: Callable[[Floats, Floats], Floats],
    seed: int,
) -> Intervals:
    """The interval of a function of two means over the same documents."""
    drawn = resampled_weights(len(first[0]), seed)
    (value, resampled), (other, resampled_other) = (_mean(*pair, drawn) for pair in (first, second))
    return percentile_interval(combine(value, other), combine(resampled, resampled_other))


def ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Interval[float]:
    """The sum of one quantity over the sum of another, resampled over prompts.

    With denominators of 1 this is a mean; with word counts, the word error rate of a set.

    Args:
        numerators: (prompts,).
        denominators: (prompts,); a prompt with 0 is left out.
        seed: seed of the resampling.

    Returns:
        A single interval; nan if all denominators are 0.

    Example:
        >>> ratio([1, 0, 3], [2, 2, 4]).value
        0.5
    """
    return _single(means(*_without_zeros(numerators, denominators), seed))


def paired_difference(
    numerators: tuple[ArrayLike, ArrayLike],
    denominators: tuple[ArrayLike, ArrayLike],
    seed: int = 0,
) -> Interval[float]:
    """`ratio` of the first minus `ratio` of the second, paired: both use the same resamples.

    Args:
        numerators: (prompts,) of the first and of the second.
        denominators: (prompts,) likewise.
        seed: seed of the resampling.

    Returns:
        A single interval; nan if all denominators of either are 0.
    """
    first, second = (
        _without_zeros(top, bottom) for top, bottom in zip(numerators, denominators, strict=True)
    )
    return _single(mean_differences(first, second, seed))


def influences(top: Floats, bottom: Floats) -> Floats:
    """Compute each prompt's first-order influence on a ratio of sums.

    The mean of the influences is the ratio.  For means, the influences are the values themselves.

    Args:
        top: (prompts,) numerators.
        bottom: (prompts,) denominators; a prompt with 0 does not count.

    Returns:
        (prompts,) influences; NaN for a prompt that does not count.
    """
    top, bottom = _without_zeros(top, bottom)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = top.sum() / bottom.sum()
        influence = value + (top - value * bottom) / bottom[bottom > 0].mean()
    return np.where(bottom > 0, influence, np.nan)


def _mean(totals: Floats, counts: Floats, drawn: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The mean (...) and that of each resample (resamples, ...)."""
    shape = totals.shape[1:]
    flat, weight = (a.reshape(len(a), -1) if shape else a for a in (totals, counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = flat.sum(0) / weight.sum(0)
        resampled = (drawn @ flat) / (drawn @ weight)
    return value.reshape(shape), resampled.reshape(len(drawn), *shape)


def _without_zeros(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Floats, Floats]:
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    return np.where(bottom > 0, top, 0.0), bottom


def _single(interval: Intervals) -> Interval[float]:
    return Interval(float(interval.value), float(interval.low), float(interval.high))
