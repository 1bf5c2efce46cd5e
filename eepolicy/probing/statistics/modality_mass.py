"""Probability mass by modality: how much of a distribution is on text ids and on speech ids."""

from __future__ import annotations

from torch import Tensor

from eepolicy.probing.statistics.context import LogitContext


def text_mass(context: LogitContext) -> Tensor:
    """Probability of the text ids, special tokens included: their sum of p.  (rows,), 0 to 1."""
    layout = context.layout
    return _mass(context, layout.text) + _mass(context, layout.text_after)


def speech_mass(context: LogitContext) -> Tensor:
    """Probability of the speech ids: their sum of p.  (rows,), 0 to 1."""
    return _mass(context, context.layout.speech)


def _mass(context: LogitContext, ids: tuple[int, int]) -> Tensor:
    """Sum of p over a half-open range of ids: (rows,)."""
    return context.weights[:, slice(*ids)].sum(-1) * context.scale
