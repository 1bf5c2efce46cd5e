"""Settling depth and deep-thinking ratio, from divergences that `probe` has computed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eepolicy.errors import EepolicyError

#: threshold of the divergence and share of full depth of arXiv 2602.13517.  Its text gives no base
#: of the logarithm; the threshold is applied to nats here
THRESHOLD, SHARE = 0.5, 0.85


def settling_depth(
    divergence: ArrayLike, depths: NDArray[np.int64], threshold: float = THRESHOLD
) -> NDArray[np.int64]:
    """First depth at which the divergence from the last layer is at most a threshold.

    This is the settling depth of deep-thinking tokens (arXiv 2602.13517).

    Args:
        divergence: (depths, tokens), Jensen-Shannon divergence from the last layer in nats.
        depths: (depths,) rising, full depth last.
        threshold: bound of the divergence, 0 or more.

    Returns:
        (tokens,), -1 where the last layer did not run.

    Raises:
        EepolicyError: the threshold is below 0.

    Examples:
        >>> settling_depth([[0.6, 0.1], [0.4, 0.6], [0.0, 0.0]], np.array([4, 8, 12])).tolist()
        [8, 4]
    """
    if not threshold >= 0:
        raise EepolicyError(f"the threshold of a divergence is 0 or more; got {threshold!r}")
    values = np.asarray(divergence, float)
    passes = values <= threshold
    passes[-1] = True  # the last layer does not diverge from itself, but for rounding
    first = depths[passes.argmax(0)]
    return np.where(np.isnan(values[-1]), -1, first)


def deep_thinking_ratio(settled: NDArray[np.int64], full_depth: int, share: float = SHARE) -> float:
    """Share of the tokens that settle in the last layers (arXiv 2602.13517).

    A token is a deep-thinking token if its settling depth is at least ceil(share * full depth).

    Args:
        settled: (tokens,) settling depths; negative ones are left out.
        full_depth: number of layers of the model.
        share: share of full depth.

    Returns:
        0 to 1; nan without tokens.

    Raises:
        EepolicyError: `share` is not between 0 and 1.

    Examples:
        >>> deep_thinking_ratio(np.array([4, 16, 17, 20]), 20)
        0.5
    """
    if not 0 < share <= 1:
        raise EepolicyError(f"share is above 0 and at most 1; got {share}")
    known = settled[settled >= 0]
    return float((known >= math.ceil(share * full_depth)).mean()) if len(known) else math.nan
