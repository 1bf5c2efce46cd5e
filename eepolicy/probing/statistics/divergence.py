"""Divergences between a layer's distribution p and the last layer's p_L."""

from __future__ import annotations

import math

from torch import Tensor

from eepolicy.probing.statistics.context import LogitContext
from eepolicy.probing.statistics.last_layer import dot


def kl(context: LogitContext) -> Tensor:
    """KL from the last layer, sum p_L log(p_L / p).  (rows,) nats.

    Computed as cross-entropy minus the entropy of p_L.
    """
    expected = dot(context.last.probabilities, context.shifted)
    return (context.log_normaliser - expected - context.last.entropy).clamp(min=0)


def kl_reverse(context: LogitContext) -> Tensor:
    """KL to the last layer, sum p log(p / p_L).  (rows,) nats."""
    expected = dot(context.weights, context.last.log_probabilities)
    return (-expected * context.scale - context.entropy).clamp(min=0)


def js(context: LogitContext) -> Tensor:
    """Jensen-Shannon divergence, H(m) - (H(p) + H(p_L)) / 2 with m = (p + p_L) / 2.

    (rows,) nats, 0 to log 2.
    """
    mean = (context.last.entropy + context.entropy) / 2
    return (context.mixture_entropy - mean).clamp(0, math.log(2))
