"""Elementwise functions of logits and embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Elementwise = Callable[[Tensor], Tensor]


def softcap(cap: float | None) -> Elementwise | None:
    """The function that keeps logits between -`cap` and `cap`; None without a cap."""
    if not cap:
        return None

    def capped(logits: Tensor) -> Tensor:
        result: Tensor = torch.tanh(logits / cap) * cap
        return result

    return capped


def times(factor: float) -> Elementwise:
    """Multiplication by a number."""
    return lambda values: values * factor


def divided(divisor: float) -> Elementwise:
    """Division by a number, which rounds differently from multiplication by its inverse."""
    return lambda values: values / divisor
