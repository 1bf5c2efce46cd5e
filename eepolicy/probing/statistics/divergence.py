"""Divergences of a layer's distribution p from the last layer's p_L, and from a neighbour's."""

from __future__ import annotations

import math

from torch import Tensor

from eepolicy.probing.statistics.context import LogitContext
from eepolicy.probing.statistics.last_layer import LastLayer, dot


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
    return _js(context, context.last, context.mixture_entropy)


def js_deeper(context: LogitContext) -> Tensor:
    """Jensen-Shannon divergence from p', the distribution at the next deeper depth of the probe.

    (rows,) nats, 0 to log 2.
    """
    deeper = context.deeper
    return _js(context, deeper, context.mixture_entropy_with(deeper))


def _js(context: LogitContext, other: LastLayer, mixture_entropy: Tensor) -> Tensor:
    """Jensen-Shannon divergence from another distribution: (rows,) nats."""
    mean = (other.entropy + context.entropy) / 2
    return (mixture_entropy - mean).clamp(0, math.log(2))
