"""Thresholds that give an adaptive policy a wanted mean depth."""

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
    """The first depth that passes at each token, full depth where none does.

    Args:
        passing: (looks, tokens).
        depths: of the looks, rising.
        full_depth: layers of the model.

    Returns:
        (tokens,).
    """
    found = np.full(passing.shape[1], full_depth)
    for row, depth in reversed(list(zip(passing, depths, strict=True))):
        found[row] = depth
    return found


def matched_policy(
    kind: type[Entropy] | type[Confidence],
    probe: ProbeResult,
    depths: tuple[int, ...],
    target: float,
) -> Entropy | Confidence:
    """The policy whose mean depth on the speech of full-depth replies is nearest to a target.

    Args:
        kind: the policy's class.
        probe: of full-depth replies at all depths, with the heads that the policy will read.
        depths: at which it looks.
        target: mean speech depth.
    """
    spoken = probe[probe.modality == Modality.SPEECH]
    statistic = spoken.entropy if kind is Entropy else spoken.confidence
    values = statistic[np.searchsorted(probe.depths, depths)]  # (looks, tokens)

    def depth_at(threshold: float) -> float:
        passing = values < threshold if kind is Entropy else values > threshold
        return float(first_passing_depth(passing, depths, probe.full_depth).mean())

    # thresholds as they are written in a spec string, so that the string gives the same policy
    candidates = {float(f"{x:.3g}") for x in np.quantile(values, np.linspace(0, 1, 401))}
    best = min(sorted(candidates), key=lambda t: abs(depth_at(t) - target))
    return kind(best, depths)
