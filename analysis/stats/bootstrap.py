"""Bootstrap intervals over prompts, for means, ratios of sums, and paired differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


def resampled_weights(prompts: int, seed: int) -> NDArray[np.int64]:
    """How often each prompt is drawn in each resample: (resamples, prompts)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)


def _summary(value: float, resampled: NDArray[np.float64]) -> Interval:
    if not np.isfinite(value):
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Interval:
    """The sum of one thing over the sum of another, resampled over prompts.

    With denominators of 1 it is the mean; with word counts, the word error rate of a set.

    Args:
        numerators: (prompts,).
        denominators: (prompts,); a prompt with 0 counts nothing.
        seed: of the resampling.
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    top = np.where(bottom > 0, top, 0.0)
    if bottom.sum() == 0:
        return _summary(float("nan"), np.empty(0))
    drawn = resampled_weights(len(top), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = (drawn @ top) / (drawn @ bottom)
    return _summary(float(top.sum()) / float(bottom.sum()), resampled)


def paired_difference(
    numerators: tuple[ArrayLike, ArrayLike],
    denominators: tuple[ArrayLike, ArrayLike],
    seed: int = 0,
) -> Interval:
    """`ratio` of the first minus `ratio` of the second, on the same prompts, drawn together."""
    (t1, t2) = (np.asarray(x, float) for x in numerators)
    (b1, b2) = (np.asarray(x, float) for x in denominators)
    t1, t2 = np.where(b1 > 0, t1, 0.0), np.where(b2 > 0, t2, 0.0)
    if b1.sum() == 0 or b2.sum() == 0:
        return _summary(float("nan"), np.empty(0))
    drawn = resampled_weights(len(t1), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = (drawn @ t1) / (drawn @ b1) - (drawn @ t2) / (drawn @ b2)
    first, second = float(t1.sum()) / float(b1.sum()), float(t2.sum()) / float(b2.sum())
    return _summary(first - second, resampled)
