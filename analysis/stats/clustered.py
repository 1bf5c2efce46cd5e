"""Sums per document, and intervals over documents as columns of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from eepolicy.analysis.stats.bootstrap import Floats, Interval, Intervals, means


def as_columns(intervals: Mapping[str, Interval[Any]]) -> dict[str, float]:
    """Single estimates by name as columns of a table: `name`, `name_low` and `name_high` each."""
    columns: dict[str, float] = {}
    for name, interval in intervals.items():
        columns |= {
            name: float(interval.value),
            f"{name}_low": float(interval.low),
            f"{name}_high": float(interval.high),
        }
    return columns


def from_columns(table: pd.DataFrame, name: str) -> Intervals:
    """The estimates that `as_columns` wrote to the rows of a table: (rows,)."""
    return Interval(*(table[f"{name}{end}"].to_numpy(float) for end in ("", "_low", "_high")))


def sums(values: ArrayLike, document: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Sum and number of the values of each document; nan values are left out.

    Args:
        values: (..., tokens).
        document: number of the document of each token, (tokens,).

    Returns:
        Sums and counts, (documents, ...) each, sorted by document number.
    """
    array = np.asarray(values, float)
    numbers, index = np.unique(document, return_inverse=True)
    member = np.zeros((len(numbers), len(index)))  # (documents, tokens)
    member[index, np.arange(len(index))] = 1.0
    known = ~np.isnan(array)
    shape = (len(numbers), *array.shape[:-1])
    totals = (member @ np.where(known, array, 0.0).reshape(-1, len(index)).T).reshape(shape)
    counts = (member @ known.reshape(-1, len(index)).T).reshape(shape)
    return totals, counts


def ratios_by(
    rows: pd.DataFrame, by: str, numerator: str, denominator: str, scale: float = 1.0
) -> dict[Any, Intervals]:
    """The sum of one column over the sum of another, for each value of a third.

    Args:
        rows: one row for each document and value of `by`.  A row with nan in the numerator or
            denominator is left out.
        by: column to group by; the result keeps the order of its values.
        numerator: name of a column.
        denominator: name of a column.
        scale: factor of the ratio, such as 100 for per cent.

    Returns:
        Intervals over documents, by value.
    """
    intervals = {}
    for value, part in rows.groupby(by, sort=False):
        known = part[[numerator, denominator]].notna().all(axis=1)
        columns = (part[c].where(known, 0).to_numpy(float) for c in (numerator, denominator))
        intervals[value] = means(*columns).scaled(scale)
    return intervals
