"""The area under the ROC curve, with intervals over documents."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eepolicy.analysis.stats.bootstrap import (
    Floats,
    Interval,
    percentile_interval,
    resampled_weights,
)


def pairs_won(
    values: Floats, positive: NDArray[np.bool_], document: NDArray[np.int64]
) -> tuple[Floats, Floats, Floats]:
    """Compare each positive item of a document with each negative item of another.

    Args:
        values: (items,).
        positive: (items,) of bool.
        document: (items,) number of the document of each item.

    Returns:
        The number of pairs in which the positive item has the larger value, ties counted half,
        (documents of positives, documents of negatives); and the number of positives and negatives
        of each document, (documents,) each.
    """
    _, index = np.unique(document, return_inverse=True)
    count = int(index.max()) + 1
    own = index[positive]
    won = np.zeros((count, count))
    for negative in range(count):
        others = np.sort(values[~positive & (index == negative)])
        below = np.searchsorted(others, values[positive], "left")
        not_above = np.searchsorted(others, values[positive], "right")
        won[:, negative] = np.bincount(own, (below + not_above) / 2, count)
    positives = np.bincount(own, minlength=count).astype(float)
    negatives = np.bincount(index[~positive], minlength=count).astype(float)
    return won, positives, negatives


def auc(
    values: ArrayLike, positive: ArrayLike, document: NDArray[np.int64], seed: int = 0
) -> Interval[float]:
    """Probability that a positive item has a larger value than a negative one; ties count half.

    Whole documents are resampled, because the items of one document are not independent.  Without
    resampling this is `superiority`.

    Args:
        values: (items,); an item with nan is left out.
        positive: (items,) of bool.
        document: (items,) number of the document of each item.
        seed: seed of the resampling.

    Returns:
        A single interval, 0 to 1; nan if there are no positive or no negative items.

    Example:
        >>> auc([3, 1, 2, 1], [True, False, True, False], np.array([0, 0, 1, 1])).value
        1.0
    """
    array, is_positive = np.asarray(values, float), np.asarray(positive, bool)
    known = ~np.isnan(array)
    array, is_positive, document = array[known], is_positive[known], document[known]
    if is_positive.all() or not is_positive.any():
        return Interval(np.nan, np.nan, np.nan)
    won, positives, negatives = pairs_won(array, is_positive, document)
    drawn = resampled_weights(len(positives), seed).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = (drawn @ positives) * (drawn @ negatives)
        resampled = ((drawn @ won) * drawn).sum(1) / pairs
    value = won.sum() / (positives.sum() * negatives.sum())
    interval = percentile_interval(np.asarray(value), resampled)
    return Interval(float(interval.value), float(interval.low), float(interval.high))
