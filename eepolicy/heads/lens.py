"""The untrained logit lens."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from eepolicy.heads.base import ExitHead


class LogitLens(ExitHead):
    """The model's own final norm and output embedding, at every depth (nostalgebraist 2020).

    Args:
        norm: the model's final norm.
        head: its output embedding.
        logit_softcap: what each logit goes through, where there is something.
    """

    def __init__(
        self,
        norm: Callable[[Tensor], Tensor],
        head: Callable[[Tensor], Tensor],
        cap: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.norm = norm
        self.head = head
        self.logit_softcap = cap

    def __repr__(self) -> str:
        return "LogitLens"

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.capped(self.head(self.norm(hidden)))

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        if not isinstance(self.head, nn.Linear):
            return super().logits_over(hidden, depth, ids)
        bias = None if self.head.bias is None else self.head.bias[ids]
        return self.capped(F.linear(self.norm(hidden), self.head.weight[ids], bias))

    def capped(self, logits: Tensor) -> Tensor:
        """What the model makes of the products with its output embedding: any shape, kept."""
        return logits if self.logit_softcap is None else self.logit_softcap(logits)
