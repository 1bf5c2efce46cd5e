"""Statistics of hidden states, before the final norm."""

from __future__ import annotations

import torch
from torch import Tensor

from eepolicy.probing.statistics.context import StateContext


def cosine_last(context: StateContext) -> Tensor:
    """Cosine with the last layer's state, <h, h_L> / (|h| |h_L|).  (rows,), -1 to 1."""
    return torch.cosine_similarity(context.states, context.last, dim=-1)


def norm_last(context: StateContext) -> Tensor:
    """Norm over that of the last layer's state, |h| / |h_L|.  (rows,)."""
    return _norm(context.states) / _norm(context.last)


def cosine_previous(context: StateContext) -> Tensor:
    """Cosine with the state one layer before, <h, h'> / (|h| |h'|).  (rows,), -1 to 1."""
    return torch.cosine_similarity(context.states, context.previous, dim=-1)


def norm_previous(context: StateContext) -> Tensor:
    """Norm over that of the state one layer before, |h| / |h'|.  (rows,)."""
    return _norm(context.states) / _norm(context.previous)


def _norm(states: Tensor) -> Tensor:
    """Euclidean norms: (rows, width) -> (rows,)."""
    norm: Tensor = torch.linalg.vector_norm(states, dim=-1)
    return norm
