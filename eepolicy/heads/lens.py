"""The untrained logit lens."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from eepolicy.heads.base import ExitHead


class LogitLens(ExitHead):
    """The model's own final norm and output embedding, at every depth.

    Args:
        norm: the model's final norm.
        head: its output embedding.
    """

    def __init__(self, norm: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor]) -> None:
        self.norm = norm
        self.head = head

    def __repr__(self) -> str:
        return "LogitLens"

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.head(self.norm(hidden))
