"""The untrained logit lens."""

from __future__ import annotations

from torch import Tensor, nn

from eepolicy.heads.base import ExitHead


class LogitLens(ExitHead):
    """The model's own final norm and output embedding, at every depth.

    Args:
        norm: the model's final norm.
        head: its output embedding.
    """

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        self.norm = norm
        self.head = head

    def __repr__(self) -> str:
        return "LogitLens"

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.head(self.norm(hidden))
