"""Relaxed verification of sampled drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, NUMBER, Acceptance, Drafts
from eepolicy.decode.acceptance.exact import AcceptExact
from eepolicy.decode.acceptance.sampling import AcceptSampling, drafted_probabilities
from eepolicy.fields import CheckedFields, Share
from eepolicy.registry import parse_rest


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptTolerance(CheckedFields, Acceptance):
    """Speculative sampling that accepts more: a draft stays where r < min(1, p/q) + tolerance.

    p and q are the probabilities of the draft under the full model and where it was sampled, and r
    is a random number from 0 to 1.  The replacement of a rejected draft is sampled from the
    normalised max(p - q, 0), as in `sampling`.  The distribution of a token then differs from the
    full model's by at most `tolerance` in total variation.

    The acceptance test is that of arXiv 2505.15380.  How that paper replaces a rejected draft was
    not checked.

    Greedy decoding draws no r.  There p/q is 1 for the full model's most likely token and 0 for
    others, so the rule equals `exact`, or `all` with the tolerance 1.

    Attributes:
        tolerance: added to the probability of acceptance, from 0 (`sampling`) to 1 (accept all).
    """

    tolerance: Share
    name: ClassVar[str] = "tolerance"
    usage: ClassVar[str] = "tolerance:TOLERANCE"
    example: ClassVar[str] = "tolerance:0.2"
    summary: ClassVar[str] = "with probability min(1, p/q) + 0.2, else sampled from max(p - q, 0)"
    paper: ClassVar[str] = "SSD, arXiv 2505.15380"
    source: ClassVar[str] = "https://arxiv.org/abs/2505.15380"
    uses_draft_scores: ClassVar[bool] = True

    def accepts(self, drafts: Drafts) -> Tensor:
        if not drafts.do_sample:
            return AcceptExact().accepts(drafts) | (self.tolerance == 1)
        p, q = drafted_probabilities(drafts)
        return drafts.uniforms * q < torch.minimum(p, q) + self.tolerance * q

    def replacement_scores(self, drafts: Drafts, index: int) -> Tensor:
        return AcceptSampling().replacement_scores(drafts, index)

    @classmethod
    def from_spec(cls, rest: str) -> AcceptTolerance:
        return cls(float(parse_rest(f":{NUMBER}", rest)[0]))

    @property
    def spec(self) -> str:
        return f"tolerance:{self.tolerance!r}"
