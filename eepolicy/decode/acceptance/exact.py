"""Lossless greedy verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, Acceptance, Drafts


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptExact(Acceptance):
    """Accepts the full model's most likely token: the reply is the full model's greedy reply.

    In bfloat16, ties within rounding can differ from the stock reply.
    """

    name: ClassVar[str] = "exact"
    usage: ClassVar[str] = "exact"
    example: ClassVar[str] = "exact"
    summary: ClassVar[str] = "lossless, greedy: the full model's most likely token"
    paper: ClassVar[str] = "LayerSkip, arXiv 2404.16710"
    source: ClassVar[str] = "https://arxiv.org/abs/2404.16710"
    greedy_only: ClassVar[bool] = True

    def accepts(self, drafts: Drafts) -> Tensor:
        return drafts.tokens == drafts.target_scores.argmax(-1)
