"""Acceptance rules: which tokens that were drafted by early exits stay after verification.

A catch-up computes the full model's distribution at every pending position.  `all` ignores it
(SPAR-K).  `exact`, `sampling` and `block` are lossless self-speculation (LayerSkip, arXiv
2404.16710).  The other rules trade fidelity for accepted drafts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from eepolicy.modality import TokenLayout
from eepolicy.registry import Declared, Registry
from eepolicy.speech.vocoders import Vocoder

#: a number of 0 or more in a spec string, as `repr` writes it
NUMBER = r"(\d*\.?\d+(?:e[+-]?\d+)?)"


@dataclass(frozen=True)
class Drafts:
    """Drafted tokens of one row, oldest first, and the scores to verify them by.

    Attributes:
        tokens: (drafts,) ids.
        target_scores: (drafts, vocab), the full model's scores after the logits processors.
        draft_scores: (drafts, vocab), the scores that the drafts were sampled from.  (drafts, 0)
            for a rule without `uses_draft_scores`, and in greedy decoding.
        do_sample: tokens are sampled; otherwise the most likely one is taken.
        uniforms: (drafts,) random numbers in [0, 1).
        state: what the rule keeps of the row's earlier verifications; see `Acceptance.begin`.
    """

    tokens: Tensor
    target_scores: Tensor
    draft_scores: Tensor
    do_sample: bool
    uniforms: Tensor
    state: Any = None


class Acceptance(Declared, ABC):
    """Decides which drafts are accepted.  Drafts after the first rejected one are dropped.

    A rule is a frozen object.  What a rule keeps from one verification of a row to the next is a
    state of its own: `begin` makes it, `Drafts.state` holds it, and `next_state` gives the next
    one.  Subclass `Acceptance` to add a rule; register it with `ACCEPTANCE_RULES.register` to give
    it a spec string.
    """

    #: whether drafts are verified; if not, nothing is computed for it
    verifies: ClassVar[bool] = True
    #: whether the rule is defined for greedy decoding only
    greedy_only: ClassVar[bool] = False
    #: whether the rule reads `Drafts.draft_scores`
    uses_draft_scores: ClassVar[bool] = False
    #: whether the decision on a draft depends on the other drafts or on the state
    is_joint: ClassVar[bool] = False

    @abstractmethod
    def accepts(self, drafts: Drafts) -> Tensor:
        """Whether each draft may stay: (drafts,) of bool."""

    def replacement_scores(self, drafts: Drafts, index: int) -> Tensor:
        """Scores that replace `index`, the first rejected draft: (vocab,)."""
        return drafts.target_scores[index]

    def begin(self) -> Any:
        """State of a row before its first verification; None for a rule without state."""
        return None

    def next_state(self, drafts: Drafts, num_accepted: int) -> Any:
        """State of the row after a verification.

        Rejected drafts never were part of the reply, so a rule counts the accepted ones only.

        Args:
            drafts: the verified drafts, with the state before them.
            num_accepted: number of drafts that stay.

        Returns:
            A new state, or the same one.  `drafts.state` is not changed.
        """
        return drafts.state

    def bind(self, layout: TokenLayout, vocoder: Vocoder | None) -> Acceptance:
        """Check the rule against a model, and return the rule with what it needs of the model.

        Raises:
            EepolicyError: an argument is out of range, or the model lacks what the rule needs.
        """
        return self


ACCEPTANCE_RULES: Registry[Acceptance] = Registry(
    kind="acceptance rule",
    group="eepolicy.acceptance",
    note="'+' joins rules that must all accept, such as top:5+ratio:0.3",
)
