"""Exact laws of what an acceptance rule gives on a small vocabulary, without sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from eepolicy.decode.acceptance import Acceptance, Drafts

#: random numbers for each token; a probability of acceptance is exact to half of their distance
GRID = 4_000


def sampled(tokens: Tensor, p: Tensor, q: Tensor, uniforms: Tensor, state=None) -> Drafts:
    """Sampled drafts: tokens (drafts,), p and q (drafts, vocab)."""
    return Drafts(tokens, p.log(), q.log(), True, uniforms, state)


def stay_probabilities(rule: Acceptance, p: Tensor, q: Tensor) -> Tensor:
    """Probability that each token stays when it is drafted alone: (vocab,)."""
    uniforms = (torch.arange(GRID) + 0.5) / GRID
    each = []
    for token in range(len(p)):
        tokens = torch.full((GRID,), token)
        # a rule without `is_joint` decides draft by draft
        each.append(
            rule.accepts(sampled(tokens, p.expand(GRID, -1), q.expand(GRID, -1), uniforms)).double()
        )
    return torch.stack(each).mean(1)


def token_law(rule: Acceptance, p: Tensor, q: Tensor) -> Tensor:
    """Distribution of the token that a draft from q, or its replacement, becomes: (vocab,)."""
    kept = q.double() * stay_probabilities(rule, p, q)
    drafts = sampled(torch.zeros(1, dtype=torch.long), p[None], q[None], torch.zeros(1))
    replacement = rule.replacement_scores(drafts, 0).double().softmax(-1)
    return kept + (1 - kept.sum()) * replacement


def pass_probabilities(rule: Acceptance, drafts: Drafts) -> list[float]:
    """Probability that each prefix of a block passes, by bisection over its random number."""
    count = len(drafts.tokens)
    parts = []
    for index in range(count):
        low, high = 0.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            uniforms = torch.ones(count)  # no other prefix passes
            uniforms[index] = middle
            accepted = rule.accepts(
                Drafts(drafts.tokens, drafts.target_scores, drafts.draft_scores, True, uniforms)
            )
            low, high = (middle, high) if bool(accepted[index]) else (low, middle)
        parts.append(low)
    return parts
