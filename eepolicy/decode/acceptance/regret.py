"""Relaxed greedy verification within a budget for each reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, NUMBER, Acceptance, Drafts
from eepolicy.fields import CheckedFields, Count, NonNegative
from eepolicy.registry import parse_rest


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptRegret(CheckedFields, Acceptance):
    """Approximate speculative decoding (ASD): drafts may cost a bounded sum of scores in a reply.

    The regret of a draft is the full model's highest score minus its score of the draft, so the
    full model's most likely token costs nothing.  Scores are logits after the logits processors.  A
    draft stays while all of these hold, and the first one that breaks one of them is rejected:

    - the regret of the reply's accepted drafts is at most `budget`;
    - the draft's regret is at most `gate` times the number of drafts that its rejection would
      drop, itself included;
    - at most `count` drafts of this verification have a regret above 0.

    The state of a row is the regret of its accepted drafts.  Rejected drafts cost nothing.

    The rules and the defaults of `gate` and `count` are those of the authors' repository (see
    `source`; the paper is arXiv 2608.03447).  There a block has a fixed length; here it is the
    number of drafts that are verified together.  The method is defined for greedy decoding only.

    Attributes:
        budget: largest regret of a reply; 0 gives `exact`.
        gate: largest regret of a draft for each draft that its rejection would drop.
        count: largest number of accepted drafts with a regret above 0 in a verification.
    """

    budget: NonNegative
    gate: NonNegative = 0.25
    count: Count = 2
    name: ClassVar[str] = "regret"
    usage: ClassVar[str] = "regret:BUDGET[:GATE[:COUNT]]"
    example: ClassVar[str] = "regret:8"
    summary: ClassVar[str] = (
        "greedy: accepted drafts score at most 8 below the full model's tokens, summed in a reply"
    )
    paper: ClassVar[str] = "ASD, arXiv 2608.03447"
    source: ClassVar[str] = "https://github.com/Kissmetothemoon/ASD"
    greedy_only: ClassVar[bool] = True
    is_joint: ClassVar[bool] = True

    def begin(self) -> float:
        return 0.0

    def accepts(self, drafts: Drafts) -> Tensor:
        regret = _regret(drafts)  # (drafts,)
        left = torch.arange(len(regret), 0, -1, device=regret.device)
        spent: float = drafts.state
        in_budget = spent + regret.cumsum(0) <= self.budget
        return in_budget & (regret <= self.gate * left) & ((regret > 0).cumsum(0) <= self.count)

    def next_state(self, drafts: Drafts, num_accepted: int) -> float:
        spent: float = drafts.state
        return spent + float(_regret(drafts)[:num_accepted].sum())

    @classmethod
    def from_spec(cls, rest: str) -> AcceptRegret:
        budget, gate, count = parse_rest(rf":{NUMBER}(?::{NUMBER}(?::(\d+))?)?", rest)
        return cls(float(budget), float(gate or cls.gate), int(count or cls.count))

    @property
    def spec(self) -> str:
        if (self.gate, self.count) == (AcceptRegret.gate, AcceptRegret.count):
            return f"regret:{self.budget!r}"
        return f"regret:{self.budget!r}:{self.gate!r}:{self.count}"


def _regret(drafts: Drafts) -> Tensor:
    """Highest score of the full model minus its score of each draft: (drafts,)."""
    scores = drafts.target_scores
    own = scores.gather(1, drafts.tokens[:, None])[:, 0]
    return (scores.amax(-1) - own).double()
