"""Acceptance rules: which tokens that were drafted by early exits stay after verification.

A catch-up computes the full model's distribution at every pending position.  `all` ignores it
(SPAR-K).  `exact` and `sampling` are lossless self-speculation (LayerSkip, arXiv 2404.16710).  The
other rules trade fidelity for accepted drafts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.modality import TokenLayout
from eepolicy.plugin_files import is_file_spec, load_plugin
from eepolicy.registry import Declared, Registry
from eepolicy.speech.vocoders import Vocoder


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
    """

    tokens: Tensor
    target_scores: Tensor
    draft_scores: Tensor
    do_sample: bool
    uniforms: Tensor


class Acceptance(Declared, ABC):
    """Decides which drafts are accepted.  Drafts after the first rejected one are dropped.

    A rule is a frozen object without state.  Subclass it to add a rule; register it with
    `ACCEPTANCE_RULES.register` to give it a spec string.
    """

    #: whether drafts are verified; if not, nothing is computed for it
    verifies: ClassVar[bool] = True
    #: whether the rule is defined for greedy decoding only
    greedy_only: ClassVar[bool] = False
    #: whether the rule reads `Drafts.draft_scores`
    uses_draft_scores: ClassVar[bool] = False

    @abstractmethod
    def accepts(self, drafts: Drafts) -> Tensor:
        """Whether each draft may stay: (drafts,) of bool."""

    def replacement_scores(self, drafts: Drafts, index: int) -> Tensor:
        """Scores that replace the rejected draft `index` is sampled from: (vocab,)."""
        return drafts.target_scores[index]

    def bind(self, layout: TokenLayout, vocoder: Vocoder | None) -> Acceptance:
        """Check the rule against a model, and return the rule with what it needs of the model.

        Raises:
            EepolicyError: an argument is out of range, or the model lacks what the rule needs.
        """
        return self


ACCEPTANCE_RULES: Registry[Acceptance] = Registry(
    kind="acceptance rule", group="eepolicy.acceptance"
)


def parse_acceptance(spec: str) -> Acceptance:
    """Build an acceptance rule from its spec string.

    Raises:
        EepolicyError: the string is not a rule; the message has the grammar.

    Examples:
        >>> from eepolicy.decode.acceptance import parse_acceptance
        >>> parse_acceptance("ratio:0.3")
        AcceptRatio(share=0.3)
    """
    if is_file_spec(spec):
        return load_plugin(spec, Acceptance, "acceptance rule")  # type: ignore[type-abstract]
    return ACCEPTANCE_RULES.create(spec.strip())
