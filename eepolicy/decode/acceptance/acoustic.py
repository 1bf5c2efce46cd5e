"""Relaxed verification by the sound of a speech unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, NUMBER, Acceptance, Drafts
from eepolicy.errors import EepolicyError
from eepolicy.fields import Count, NonNegative, check_fields
from eepolicy.modality import TokenLayout
from eepolicy.registry import parse_rest
from eepolicy.speech.vocoders import Vocoder, check_codebook, codebook_of


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptAcoustic(Acceptance):
    """Accepts a speech unit that sounds like the full model's most likely token.

    After the acoustic similarity of arXiv 2511.13732; here it is the Euclidean distance of entries
    in the vocoder's codebook.  Text is verified as by `exact`.

    Attributes:
        distance: largest accepted distance.
        codebook: (units, features); default: the codebook of the model's vocoder.
        first: id of the first unit.
    """

    distance: NonNegative
    codebook: Tensor | None = field(default=None, repr=False, compare=False)
    first: Count = 0
    #: the codebook is the model's, which `bind` has given
    _is_bound: bool = field(default=False, init=False, repr=False, compare=False)
    name: ClassVar[str] = "acoustic"
    usage: ClassVar[str] = "acoustic:DISTANCE"
    example: ClassVar[str] = "acoustic:20"
    summary: ClassVar[str] = "the unit sounds like the full model's, by distance in the codebook"
    paper: ClassVar[str] = "after arXiv 2511.13732"
    source: ClassVar[str] = "https://arxiv.org/abs/2511.13732"

    def __post_init__(self) -> None:
        check_fields(self)
        check_codebook(self.codebook, type(self).__name__)

    def accepts(self, drafts: Drafts) -> Tensor:
        assert self.codebook is not None
        target = drafts.target_scores.argmax(-1)  # (drafts,)
        accepted = drafts.tokens == target
        units = torch.stack([drafts.tokens, target]) - self.first  # (2, drafts)
        both_units = ((units >= 0) & (units < len(self.codebook))).all(0)
        draft_sound, target_sound = self.codebook.to(units.device)[units[:, both_units]]
        accepted[both_units] |= (draft_sound - target_sound).norm(dim=-1) <= self.distance
        return accepted

    def bind(self, layout: TokenLayout, vocoder: Vocoder | None) -> Acceptance:
        if self.codebook is not None:
            return self
        bound = AcceptAcoustic(self.distance, units_for(self, vocoder, layout), layout.speech[0])
        object.__setattr__(bound, "_is_bound", True)
        return bound

    @classmethod
    def from_spec(cls, rest: str) -> AcceptAcoustic:
        return cls(float(parse_rest(f":{NUMBER}", rest)[0]))

    @property
    def spec(self) -> str:
        refuse_own_codebook(self)
        return f"acoustic:{self.distance!r}"


def refuse_own_codebook(rule: Any) -> None:
    """Refuse the spec string of a rule with a codebook that the model does not give.

    Raises:
        EepolicyError: the user gave the codebook, which no spec string can name.
    """
    if rule.codebook is not None and not rule._is_bound:
        raise EepolicyError(
            f"{rule!r} has a codebook of its own, and so no spec string; pass the rule itself"
        )


def units_for(rule: Acceptance, vocoder: Vocoder | None, layout: TokenLayout) -> Tensor:
    """The codebook of a vocoder, (units, features), for a rule that compares sounds.

    A codebook may have more rows than the model has units.

    Raises:
        EepolicyError: the vocoder has no codebook.
    """
    codebook = codebook_of(vocoder)
    if codebook is None:
        raise EepolicyError(
            f"{rule!r} compares the sounds of units: use a model whose vocoder has a codebook, or "
            f"{type(rule).__name__}(distance, codebook=...)"
        )
    return codebook[: layout.num_units]
