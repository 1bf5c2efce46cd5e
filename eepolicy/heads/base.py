"""What turns a hidden state at some depth into logits."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class ExitHead(ABC):
    """Reads tokens out of hidden states below full depth."""

    @abstractmethod
    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        """Logits of hidden states after `depth` layers: (..., width) -> (..., vocabulary)."""
