"""The tuned lens: an affine map of each depth in front of the norm and head of the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eepolicy.heads.fitted import KINDS, DepthHead, HeadSize
from eepolicy.heads.lens import LogitLens


@KINDS.register
class TunedLens(DepthHead):
    """h + W h + b, then the final norm and the output embedding of the model.

    It is the smallest kind of head: all depths share the output embedding of the model.

    Source: Belrose et al. 2023, arXiv 2303.08112.

    Args:
        lens: norm and output embedding of the model.
        weight: W, (width, width).
        bias: b, (width,).
    """

    name = "tuned"
    summary = "an affine map, then the norm and output embedding of the model"
    paper = "Belrose et al. 2023, arXiv 2303.08112"
    source = "https://arxiv.org/abs/2303.08112"

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, lens: LogitLens, weight: Tensor, bias: Tensor) -> None:
        super().__init__(lens, weight=weight, bias=bias)

    @classmethod
    def initial(
        cls, lens: LogitLens, depth: int, size: HeadSize, generator: torch.Generator
    ) -> TunedLens:
        return cls(lens, torch.zeros(size.width, size.width), torch.zeros(size.width))

    @staticmethod
    def count(size: HeadSize) -> int:
        return size.width * size.width + size.width

    def translate(self, hidden: Tensor) -> Tensor:
        """Map hidden states to states of the last layer: (..., width) -> (..., width)."""
        change = F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return hidden + change.to(hidden.dtype)

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.lens.logits(self.translate(hidden), depth)

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        return self.lens.logits_over(self.translate(hidden), depth, ids)
