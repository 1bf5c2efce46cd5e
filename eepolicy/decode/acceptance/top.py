"""Relaxed verification by rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, Acceptance, Drafts
from eepolicy.fields import CheckedFields, Positive
from eepolicy.registry import parse_rest


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptTop(CheckedFields, Acceptance):
    """Accepts a draft among the full model's most likely tokens.

    Attributes:
        count: number of most likely tokens.
    """

    count: Positive
    name: ClassVar[str] = "top"
    usage: ClassVar[str] = "top:COUNT"
    example: ClassVar[str] = "top:5"
    summary: ClassVar[str] = "among the full model's 5 most likely tokens"

    def accepts(self, drafts: Drafts) -> Tensor:
        count = min(self.count, drafts.target_scores.shape[1])
        best = drafts.target_scores.topk(count, -1).indices  # (drafts, count)
        own = drafts.target_scores.gather(1, drafts.tokens[:, None])[:, 0]
        # sampling may leave fewer tokens than the rule accepts
        return (best == drafts.tokens[:, None]).any(-1) & (own > -torch.inf)

    @classmethod
    def from_spec(cls, rest: str) -> AcceptTop:
        return cls(int(parse_rest(r":(\d+)", rest)[0]))

    @property
    def spec(self) -> str:
        return f"top:{self.count}"
