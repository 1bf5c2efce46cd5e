"""Tokens that change after they had settled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eepolicy.errors import EepolicyError

#: depths with the same top token after which it counts as settled
PATIENCE = 3


def flips_after_settling(top1: NDArray[np.int64], patience: int = PATIENCE) -> NDArray[np.bool_]:
    """Whether the top token changes at a depth although it had settled.

    A top token has settled if it was the same at `patience` neighbouring depths of the probe.  Exit
    rules that wait for such agreement exit there, so each flip is an error that they make.

    Args:
        top1: (depths, tokens) ids of the most probable tokens, the deepest last; -1 if unknown.
        patience: number of depths with the same top token.

    Returns:
        (depths, tokens), True at the depth with the new token.

    Raises:
        EepolicyError: `patience` is below one.

    Examples:
        >>> flips_after_settling(np.array([[5], [5], [5], [7], [7]])).ravel().tolist()
        [False, False, False, True, False]
    """
    if patience < 1:
        raise EepolicyError(f"patience is at least 1 depth; got {patience}")
    flips = np.zeros(top1.shape, bool)
    same, known = top1[1:] == top1[:-1], top1 >= 0
    for depth in range(patience, len(top1)):
        settled = same[depth - patience : depth - 1].all(0)
        flips[depth] = settled & ~same[depth - 1] & known[depth] & known[depth - 1]
    return flips
