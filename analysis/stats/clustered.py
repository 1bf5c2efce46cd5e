"""Tokens of one document are not independent: sums over documents, and intervals over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from eepolicy.analysis.stats.bootstrap import Interval, resampled_weights

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Intervals:
    """Estimates and their 95 % percentile bootstrap intervals over documents.

    Attributes:
        value: any shape.
        low: the same shape.
        high: the same shape.
    """

    value: Floats
    low: Floats
    high: Floats

    def __getitem__(self, which: Any) -> Intervals:
        return Intervals(self.value[which], self.low[which], self.high[which])

    def text(self, which: Any = (), digits: int = 2, scale: float = 1.0) -> str:
        """One of them as it stands in a table."""
        value, low, high = (float(scale * a[which]) for a in (self.value, self.low, self.high))
        if np.isnan(value):
            return "–"
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def as_columns(found: Mapping[str, Interval | Intervals]) -> dict[str, float]:
    """Single estimates by name as columns of a table: `name`, `name_low` and `name_high` each."""
    columns: dict[str, float] = {}
    for name, one in found.items():
        ends = (("", one.value), ("_low", one.low), ("_high", one.high))
        columns |= {f"{name}{end}": float(value) for end, value in ends}
    return columns


def sums(values: ArrayLike, document: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Sums over the tokens of each document, and of how many: nan counts nothing.

    Args:
        values: (..., tokens).
        document: (tokens,) its number.

    Returns:
        (documents, ...) twice, in the order of the numbers.
    """
    array = np.asarray(values, float)
    numbers, places = np.unique(document, return_inverse=True)
    member = np.zeros((len(numbers), len(places)))
    member[places, np.arange(len(places))] = 1.0
    known = ~np.isnan(array)
    shape = (len(numbers), *array.shape[:-1])
    totals = (member @ np.where(known, array, 0.0).reshape(-1, len(places)).T).reshape(shape)
    counts = (member @ known.reshape(-1, len(places)).T).reshape(shape)
    return totals, counts


def means(totals: Floats, counts: Floats, seed: int = 0) -> Intervals:
    """Means over tokens, resampled over documents: (documents, ...) twice -> (...)."""
    flat, weight = totals.reshape(len(totals), -1), counts.reshape(len(counts), -1)
    drawn = resampled_weights(len(totals), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = flat.sum(0) / weight.sum(0)
        resampled = (drawn @ flat) / (drawn @ weight)
    return _summary(value, resampled, totals.shape[1:])


def mean_differences(
    first: tuple[Floats, Floats], second: tuple[Floats, Floats], seed: int = 0
) -> Intervals:
    """`means` of the first less those of the second, the same documents drawn for both."""
    parts = [tuple(a.reshape(len(a), -1) for a in pair) for pair in (first, second)]
    drawn = resampled_weights(len(first[0]), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = parts[0][0].sum(0) / parts[0][1].sum(0) - parts[1][0].sum(0) / parts[1][1].sum(0)
        resampled = (drawn @ parts[0][0]) / (drawn @ parts[0][1]) - (drawn @ parts[1][0]) / (
            drawn @ parts[1][1]
        )
    return _summary(value, resampled, first[0].shape[1:])


def ratios_by(
    rows: pd.DataFrame, by: str, top: str, bottom: str, scale: float = 1.0
) -> dict[Any, Intervals]:
    """The sum of one column over that of another, for each value of a third.

    Args:
        rows: one a document and value; where either column is nan it counts nothing.
        by: the third column; its values stay in the order in which they come.
        top: column.
        bottom: column.
        scale: of the ratio.

    Returns:
        Intervals over documents, by value.
    """
    found = {}
    for value, part in rows.groupby(by, sort=False):
        known = part[[top, bottom]].notna().all(axis=1)
        one = means(*(part[c].where(known, 0).to_numpy(float) for c in (top, bottom)))
        found[value] = Intervals(*(scale * x for x in (one.value, one.low, one.high)))
    return found


def _summary(value: Floats, resampled: Floats, shape: tuple[int, ...]) -> Intervals:
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    if np.isnan(resampled).any():  # some resample drew no document that has the value
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            low, high = np.nanpercentile(resampled, [2.5, 97.5], axis=0)
    return Intervals(value.reshape(shape), low.reshape(shape), high.reshape(shape))
