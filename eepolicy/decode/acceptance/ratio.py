"""Relaxed verification by probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, NUMBER, Acceptance, Drafts
from eepolicy.fields import CheckedFields, Share
from eepolicy.registry import parse_rest


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptRatio(CheckedFields, Acceptance):
    """Accepts a draft whose probability is at least a share of the most likely token's.

    Attributes:
        share: share of the highest probability of the full model, from 0 (accept all) to 1 (accept
            the most likely token).
    """

    share: Share
    name: ClassVar[str] = "ratio"
    usage: ClassVar[str] = "ratio:SHARE"
    example: ClassVar[str] = "ratio:0.3"
    summary: ClassVar[str] = "at least 0.3 times as likely as the full model's most likely token"

    def accepts(self, drafts: Drafts) -> Tensor:
        p = drafts.target_scores.softmax(-1)  # (drafts, vocab)
        return p.gather(1, drafts.tokens[:, None])[:, 0] >= self.share * p.amax(-1)

    @classmethod
    def from_spec(cls, rest: str) -> AcceptRatio:
        return cls(float(parse_rest(f":{NUMBER}", rest)[0]))

    @property
    def spec(self) -> str:
        return f"ratio:{self.share!r}"
