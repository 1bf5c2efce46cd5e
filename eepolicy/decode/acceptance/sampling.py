"""Lossless verification of sampled drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, Acceptance, Drafts
from eepolicy.decode.acceptance.exact import AcceptExact


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptSampling(Acceptance):
    """Speculative sampling: the reply has the full model's distribution.

    A draft x is accepted with probability min(1, p(x) / q(x)), where p is the full model's
    distribution and q the one that x was sampled from.  The replacement of a rejected draft is
    sampled from the normalised max(p - q, 0).  See arXiv 2211.17192, section 2.3.
    """

    name: ClassVar[str] = "sampling"
    usage: ClassVar[str] = "sampling"
    example: ClassVar[str] = "sampling"
    summary: ClassVar[str] = (
        "lossless: with probability min(1, p/q), else sampled from max(p - q, 0)"
    )
    paper: ClassVar[str] = "speculative sampling, arXiv 2211.17192"
    source: ClassVar[str] = "https://arxiv.org/abs/2211.17192"
    uses_draft_scores: ClassVar[bool] = True

    def accepts(self, drafts: Drafts) -> Tensor:
        if not drafts.do_sample:
            return AcceptExact().accepts(drafts)
        p, q = drafted_probabilities(drafts)
        return drafts.uniforms * q < p

    def replacement_scores(self, drafts: Drafts, index: int) -> Tensor:
        if not drafts.do_sample:
            return drafts.target_scores[index]
        return log_residual(drafts, index)


def drafted_probabilities(drafts: Drafts) -> tuple[Tensor, Tensor]:
    """Probabilities of the drafts under the full model and where they were sampled: (drafts,)."""
    tokens = drafts.tokens[:, None]
    scores = (drafts.target_scores, drafts.draft_scores)
    p, q = (s.softmax(-1).gather(1, tokens)[:, 0] for s in scores)
    return p, q


def log_residual(drafts: Drafts, index: int, weight: Tensor | float = 1.0) -> Tensor:
    """Logarithm of max(weight p - q, 0) at a draft: (vocab,)."""
    target = drafts.target_scores[index]
    residual = (weight * target.softmax(-1) - drafts.draft_scores[index].softmax(-1)).clamp(min=0)
    # p and q may differ by rounding only
    return residual.log() if residual.any() else target
