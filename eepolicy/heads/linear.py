"""The paper's head: an output embedding of its own for each depth, whole or of low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eepolicy.errors import EepolicyError
from eepolicy.heads.fitted import FittedHead
from eepolicy.heads.lens import LogitLens


class LinearHead(FittedHead):
    """The model's final norm, then an output embedding W_d of the depth (SPAR-K, section 2).

    W_d starts as the model's own.  The paper does not say whether a norm comes first; here the
    model's does, so that the start is the logit lens.

    Args:
        lens: the model's norm and head.
        depths: with an embedding, rising.
        weight: of each depth, (vocabulary, width).
    """

    kind = "linear"

    def __init__(self, lens: LogitLens, depths: Sequence[int], weight: Sequence[Tensor]) -> None:
        super().__init__(lens, depths, weight=weight)

    @classmethod
    def untrained(
        cls, lens: LogitLens, depths: Sequence[int], *, width: int = 0, rank: int = 0, seed: int = 0
    ) -> LinearHead:
        return cls(lens, depths, [linear(lens).weight.detach().float().clone() for _ in depths])

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.logits_over(hidden, depth, slice(None))

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        weight, bias = self.at(depth)["weight"][ids], linear(self.lens).bias
        normed = self.lens.norm(hidden).to(weight.dtype)
        return self.lens.capped(
            F.linear(normed, weight, None if bias is None else bias[ids].to(weight.dtype))
        )


class LowRankHead(FittedHead):
    """A `LinearHead` whose difference from the model's own embedding is of low rank, U_d V_d.

    Args:
        lens: the model's norm and head.
        depths: with a difference, rising.
        up: U of each depth, (vocabulary, rank).
        down: V of each depth, (rank, width).
    """

    kind = "low-rank"

    def __init__(
        self,
        lens: LogitLens,
        depths: Sequence[int],
        up: Sequence[Tensor],
        down: Sequence[Tensor],
    ) -> None:
        super().__init__(lens, depths, up=up, down=down)

    @classmethod
    def untrained(
        cls,
        lens: LogitLens,
        depths: Sequence[int],
        *,
        width: int = 0,
        rank: int = 32,
        seed: int = 0,
    ) -> LowRankHead:
        vocabulary, wide = linear(lens).weight.shape
        generator = torch.Generator().manual_seed(seed)
        return cls(
            lens,
            depths,
            [torch.zeros(vocabulary, rank) for _ in depths],
            [torch.randn(rank, wide, generator=generator) / wide**0.5 for _ in depths],
        )

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.logits_over(hidden, depth, slice(None))

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        own, head = self.at(depth), linear(self.lens)
        normed = self.lens.norm(hidden)
        bias = None if head.bias is None else head.bias[ids]
        shared = F.linear(normed, head.weight[ids], bias)
        more = F.linear(F.linear(normed.to(own["down"].dtype), own["down"]), own["up"][ids])
        return self.lens.capped(shared + more)


def linear(lens: LogitLens) -> nn.Linear:
    """The model's output embedding.

    Raises:
        EepolicyError: it is none that a head of this kind could start from.
    """
    if not isinstance(lens.head, nn.Linear):
        raise EepolicyError(
            f"a linear head starts from an output embedding that is a torch.nn.Linear; this model "
            f"has {lens.head!r}: fit a tuned lens"
        )
    return lens.head
