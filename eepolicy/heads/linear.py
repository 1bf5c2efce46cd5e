"""Heads with an output embedding for each depth, of full or of low rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eepolicy.heads.fitted import KINDS, DepthHead, HeadSize
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.weights import output_bias, output_weight


@KINDS.register
class LinearHead(DepthHead):
    """The final norm of the model, then an output embedding W of the depth.

    W starts as the output embedding of the model.  The paper does not say whether a norm comes
    first; here the norm of the model does, so that the initial head equals the logit lens.

    Source: SPAR-K, arXiv 2603.09215, section 2.

    Args:
        lens: norm and output embedding of the model.
        weight: W, (vocabulary, width).
    """

    name = "linear"
    summary = "the norm of the model, then an output embedding of the depth"
    paper = "SPAR-K, arXiv 2603.09215"
    source = "https://arxiv.org/abs/2603.09215"

    weight: nn.Parameter

    def __init__(self, lens: LogitLens, weight: Tensor) -> None:
        super().__init__(lens, weight=weight)

    @classmethod
    def initial(
        cls, lens: LogitLens, depth: int, size: HeadSize, generator: torch.Generator
    ) -> LinearHead:
        weight = output_weight(lens.head, lens.norm, size.width)
        return cls(lens, weight.detach().float().clone())

    @staticmethod
    def count(size: HeadSize) -> int:
        return size.vocabulary * size.width

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.logits_over(hidden, depth, slice(None))

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        weight, shared = self.weight[ids], output_bias(self.lens.head)
        normed = self.lens.norm(hidden).to(weight)
        bias = None if shared is None else shared[ids].to(weight)
        return self.lens.softcap(F.linear(normed, weight, bias))


@KINDS.register
class LowRankHead(DepthHead):
    """A `LinearHead` whose W is the output embedding of the model plus a product U V of low rank.

    Args:
        lens: norm and output embedding of the model.
        up: U, (vocabulary, rank).
        down: V, (rank, width).
    """

    name = "low-rank"
    summary = "the output embedding of the model plus a low-rank update of the depth"
    paper = ""
    source = ""

    up: nn.Parameter
    down: nn.Parameter

    def __init__(self, lens: LogitLens, up: Tensor, down: Tensor) -> None:
        super().__init__(lens, up=up, down=down)

    @classmethod
    def initial(
        cls, lens: LogitLens, depth: int, size: HeadSize, generator: torch.Generator
    ) -> LowRankHead:
        vocabulary, width = output_weight(lens.head, lens.norm, size.width).shape
        down = torch.randn(size.rank, width, generator=generator) / width**0.5
        return cls(lens, torch.zeros(vocabulary, size.rank), down)

    @staticmethod
    def count(size: HeadSize) -> int:
        return size.rank * (size.vocabulary + size.width)

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.logits_over(hidden, depth, slice(None))

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        normed = self.lens.norm(hidden)
        update = F.linear(F.linear(normed.to(self.down), self.down), self.up[ids])
        return self.lens.softcap(self.lens.product(normed, ids).to(update.device) + update)
