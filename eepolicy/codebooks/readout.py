"""The readout of codes that were just computed, for codebook policies."""

from __future__ import annotations

from collections.abc import Sequence

from eepolicy.decode.readout import LazyReadout, ReadoutSource
from eepolicy.decode.step import StepOutput


def readout_of(output: StepOutput, rows: Sequence[int] | None = None) -> LazyReadout:
    """The logits of a step and their statistics, which are computed on access.

    Args:
        output: the step.
        rows: rows of the step; None for all.
    """
    logits, hidden, depths = output.logits, output.hidden, output.depth
    if rows is not None and len(rows) < len(depths):
        logits, hidden, depths = logits[rows], hidden[rows], [depths[i] for i in rows]
    # rows may be read out at several depths; a codebook policy does not read the depth
    return LazyReadout(max(depths), hidden, ReadoutSource(lambda *_: logits))
