"""What an adaptive policy is shown, computed when it is touched and counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor


class LazyReadout:
    """A look at one depth; see `eepolicy.policies.Readout`.

    Args:
        hidden: (rows, width) after the layer.
        read: the exit head at this depth, (rows, width) -> (rows, vocabulary).
    """

    def __init__(self, hidden: Tensor, read: Callable[[Tensor], Tensor]) -> None:
        self.hidden = hidden
        self._read = read
        self.paid = 0

    @cached_property
    def logits(self) -> Tensor:
        self.paid += 1
        return self._read(self.hidden)

    @cached_property
    def log_probabilities(self) -> Tensor:
        """(rows, vocabulary), in float32."""
        return self.logits.float().log_softmax(-1)

    @cached_property
    def entropy(self) -> Tensor:
        return -(self.log_probabilities.exp() * self.log_probabilities).sum(-1)

    @cached_property
    def confidence(self) -> Tensor:
        return self.log_probabilities.amax(-1).exp()
