"""Rules that must all accept a draft, and the parser of spec strings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from eepolicy.arguments import checked
from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, Acceptance, Drafts
from eepolicy.errors import EepolicyError
from eepolicy.fields import Tuple, check_fields
from eepolicy.modality import TokenLayout
from eepolicy.plugin_files import is_file_spec, load_plugin
from eepolicy.speech.vocoders import Vocoder

#: a plus between two rules; the plus of `1e+20` has no letter after it
_PLUS = re.compile(r"\s*\+\s*(?=[a-z_-])")


@dataclass(frozen=True)
class AcceptJoined(Acceptance):
    """Accepts a draft that each of several rules accepts, such as `top:5+ratio:0.3`.

    The full model's token replaces a rejected draft.  Only rules that do the same alone can be
    joined: a rule that samples the replacement from another distribution is exact for its own
    rejections only.

    Attributes:
        rules: two or more rules that read the full model's scores, draft by draft.

    Raises:
        EepolicyError: there are fewer than two rules, or one of them cannot be joined.
    """

    rules: Annotated[tuple[Acceptance, ...], Tuple]

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.rules) < 2:
            raise EepolicyError(f"{self!r}: join two or more rules")
        for rule in self.rules:
            own_replacement = type(rule).replacement_scores is not Acceptance.replacement_scores
            needs_more = rule.uses_draft_scores or rule.is_joint or rule.greedy_only
            if own_replacement or needs_more or not rule.verifies or type(rule) is AcceptJoined:
                raise EepolicyError(
                    f"{rule!r} cannot be joined: '+' joins rules that compare each draft with the "
                    "full model's scores, such as top:5+ratio:0.3"
                )

    def accepts(self, drafts: Drafts) -> Tensor:
        return torch.stack([rule.accepts(drafts) for rule in self.rules]).all(0)

    def bind(self, layout: TokenLayout, vocoder: Vocoder | None) -> Acceptance:
        return AcceptJoined(tuple(rule.bind(layout, vocoder) for rule in self.rules))

    @property
    def spec(self) -> str:
        return "+".join(rule.spec for rule in self.rules)


@checked()
def parse_acceptance(spec: str) -> Acceptance:
    """Build an acceptance rule from its spec string.

    Raises:
        EepolicyError: the string is not a rule; the message has the grammar.

    Examples:
        >>> from eepolicy.decode.acceptance import parse_acceptance
        >>> parse_acceptance("ratio:0.3")
        AcceptRatio(share=0.3)
        >>> parse_acceptance("top:5+ratio:0.3")
        AcceptJoined(rules=(AcceptTop(count=5), AcceptRatio(share=0.3)))
    """
    if is_file_spec(spec):
        return load_plugin(spec, Acceptance, "acceptance rule")  # type: ignore[type-abstract]
    rules = tuple(ACCEPTANCE_RULES.create(part) for part in _PLUS.split(spec.strip()))
    return rules[0] if len(rules) == 1 else AcceptJoined(rules)
