"""The tuned lens: an affine translator a depth, then the model's own norm and head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eepolicy.heads.fitted import FittedHead
from eepolicy.heads.lens import LogitLens


class TunedLens(FittedHead):
    """h + W_d h + b_d, then the model's final norm and head (Belrose et al. 2023, 2303.08112).

    A small form of the head a depth that SPAR-K trains: the output embedding is shared.

    Args:
        lens: the model's norm and head.
        depths: with a translator, rising.
        weight: of each depth, (width, width).
        bias: of each depth, (width,).
    """

    kind = "tuned"

    def __init__(
        self,
        lens: LogitLens,
        depths: Sequence[int],
        weight: Sequence[Tensor],
        bias: Sequence[Tensor],
    ) -> None:
        super().__init__(lens, depths, weight=weight, bias=bias)

    @classmethod
    def untrained(
        cls, lens: LogitLens, depths: Sequence[int], *, width: int, rank: int = 0, seed: int = 0
    ) -> TunedLens:
        return cls(
            lens,
            depths,
            [torch.zeros(width, width) for _ in depths],
            [torch.zeros(width) for _ in depths],
        )

    def translate(self, hidden: Tensor, depth: int) -> Tensor:
        """Hidden states as the last layer would have them: (..., width) -> (..., width)."""
        own = self.at(depth)
        moved = F.linear(hidden.to(own["weight"].dtype), own["weight"], own["bias"])
        return hidden + moved.to(hidden.dtype)

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.lens.logits(self.translate(hidden, depth), depth)

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        return self.lens.logits_over(self.translate(hidden, depth), depth, ids)
