"""Lossless verification of sampled drafts by joint probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, Acceptance, Drafts
from eepolicy.decode.acceptance.exact import AcceptExact
from eepolicy.decode.acceptance.sampling import drafted_probabilities, log_residual


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptBlock(Acceptance):
    """Block verification: the longest prefix of the drafts that passes stays.

    The reply has the full model's distribution, and at least as many drafts stay in expectation as
    with `sampling`.  See arXiv 2403.10444.  With the drafts x_1..x_n and the distributions p_i of
    the full model and q_i of the drafts:

    - w_0 = 1 and w_i = min(1, w_(i-1) p_i(x_i) / q_i(x_i)).  Draft i stays with probability w_i.
    - z_i is the sum of max(w_i p_(i+1) - q_(i+1), 0) over the vocabulary.
    - Prefix i passes with probability h_i = z_i / (z_i + 1 - w_i), and the whole block with w_n.
    - With t drafts that stay, the replacement of draft t + 1 is sampled from the normalised
      max(w_t p_(t+1) - q_(t+1), 0).

    The number of drafts may depend on the drafts themselves: induction from the last draft to the
    first gives the probability w_i for any rule that ends a block after its last draft.

    In greedy decoding all p_i and q_i are one at one token, so the rule equals `exact`.
    """

    name: ClassVar[str] = "block"
    usage: ClassVar[str] = "block"
    example: ClassVar[str] = "block"
    summary: ClassVar[str] = "lossless: the longest prefix that passes by joint probabilities"
    paper: ClassVar[str] = "block verification, arXiv 2403.10444"
    source: ClassVar[str] = "https://arxiv.org/abs/2403.10444"
    uses_draft_scores: ClassVar[bool] = True
    is_joint: ClassVar[bool] = True

    def accepts(self, drafts: Drafts) -> Tensor:
        if not drafts.do_sample:
            return AcceptExact().accepts(drafts)
        weights = _weights(drafts)  # (drafts + 1,)
        before, after = weights[:-1], weights[1:]
        p, q = drafts.target_scores.softmax(-1), drafts.draft_scores.softmax(-1)
        residual = (before[:, None] * p - q).clamp(min=0).sum(-1)  # (drafts,), z_0 to z_(n-1)
        passes = after.clone()
        # where p equals q after a weight of 1, no draft is lost, and any value will do
        passes[:-1] = (residual[1:] / (residual[1:] + 1 - after[:-1])).nan_to_num(1)
        passed = drafts.uniforms < passes
        # a draft stays if its prefix or a longer one passes
        return passed.flip(0).cummax(0).values.flip(0)

    def replacement_scores(self, drafts: Drafts, index: int) -> Tensor:
        if not drafts.do_sample:
            return drafts.target_scores[index]
        return log_residual(drafts, index, _weights(drafts)[index])


def _weights(drafts: Drafts) -> Tensor:
    """w_0 to w_n: the probability that each prefix of the drafts stays, (drafts + 1,)."""
    p, q = drafted_probabilities(drafts)
    weights = [torch.ones_like(p[0])]
    for ratio in p / q:
        weights.append((weights[-1] * ratio).clamp(max=1))
    return torch.stack(weights)
