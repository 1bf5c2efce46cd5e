"""Thresholds that give an adaptive policy a target mean depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eepolicy.modality import Modality
from eepolicy.policies import Confidence, Entropy
from eepolicy.probing import ProbeResult


def first_passing_depth(
    passing: NDArray[np.bool_], depths: Sequence[int], full_depth: int
) -> NDArray[np.int64]:
    """Find the first depth that passes at each token; full depth if none does.

    Args:
        passing: (depths, tokens) whether a token may exit at a depth.
        depths: candidate depths in ascending order.
        full_depth: number of layers of the model.

    Returns:
        (tokens,) depths.
    """
    first = np.full(passing.shape[1], full_depth)
    for row, depth in reversed(list(zip(passing, depths, strict=True))):
        first[row] = depth
    return first


def matched_policy(
    kind: type[Entropy] | type[Confidence],
    probe: ProbeResult,
    depths: tuple[int, ...],
    target: float,
) -> Entropy | Confidence:
    """Choose the threshold whose mean depth on the speech tokens is nearest to a target.

    Args:
        kind: class of the policy.
        probe: result for full-depth replies at all depths, with the heads that the policy reads.
        depths: candidate depths of the policy.
        target: target of the mean speech depth.

    Returns:
        The policy.  Its spec string gives the same policy.
    """
    speech = probe[probe.modality == Modality.SPEECH]
    statistic = speech.entropy if kind is Entropy else speech.confidence
    values = statistic[np.searchsorted(probe.depths, depths)]  # (depths, tokens)

    def mean_depth(threshold: float) -> float:
        passing = values < threshold if kind is Entropy else values > threshold
        return float(first_passing_depth(passing, depths, probe.full_depth).mean())

    # rounded to three digits: a spec string gives the same policy
    candidates = {float(f"{x:.3g}") for x in np.quantile(values, np.linspace(0, 1, 401))}
    best = min(sorted(candidates), key=lambda threshold: abs(mean_depth(threshold) - target))
    return kind(best, depths)
