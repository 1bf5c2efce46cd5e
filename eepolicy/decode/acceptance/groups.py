"""Verification of sampled drafts by groups of similar sounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.decode.acceptance.acoustic import (
    AcceptAcoustic,
    refuse_own_codebook,
    units_for,
)
from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, NUMBER, Acceptance, Drafts
from eepolicy.decode.acceptance.sampling import drafted_probabilities
from eepolicy.fields import Count, NonNegative, check_fields
from eepolicy.modality import TokenLayout
from eepolicy.registry import parse_rest
from eepolicy.speech.vocoders import Vocoder, check_codebook

#: rows of the distance matrix that are computed at a time
_ROWS = 1024


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptGroups(Acceptance):
    """Speculative sampling of groups of units with similar sounds.

    After principled coarse-graining, arXiv 2511.13732.  Each unit has a group: the units within a
    distance of it in the vocoder's codebook.  Groups overlap.  A unit gives an equal share of its
    probability to each group that contains it, so p and q become distributions P and Q of groups.
    A draft represents one of its groups, each equally likely.  It stays with probability
    min(1, P/Q) of that group; otherwise a group is sampled from the normalised max(P - Q, 0), and
    a unit of the group in proportion to the unit's share.  The sampled group then has exactly the
    full model's distribution P.  Within a group, accepted drafts keep the proportions of q.

    The choice of the draft's group and the acceptance need one random number only: the draft stays
    with the mean of min(1, P/Q) over its groups.  Text and end tokens are groups of their own.

    The paper measures similarity in the full model's embedding; here the distance in the codebook
    decides, as for `acoustic`.  Only the paper's abstract was read.  One group for each unit and
    equal shares follow public code that reproduces the paper.

    Greedy decoding samples no group.  The rule then equals `acoustic`: the draft stays if it is in
    the group of the full model's most likely token.

    Attributes:
        distance: largest distance within a group; 0 gives `sampling`, apart from equal sounds.
        codebook: (units, features); default: the codebook of the model's vocoder.
        first: id of the first unit.
    """

    distance: NonNegative
    codebook: Tensor | None = field(default=None, repr=False, compare=False)
    first: Count = 0
    #: the codebook is the model's, which `bind` has given
    _is_bound: bool = field(default=False, init=False, repr=False, compare=False)
    #: codebook and groups by device, made once for the rule and its bound copies
    _made: dict[torch.device, tuple[Tensor, SoundGroups]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    name: ClassVar[str] = "groups"
    usage: ClassVar[str] = "groups:DISTANCE"
    example: ClassVar[str] = "groups:20"
    summary: ClassVar[str] = "sampled: exact for groups of units with sounds within distance 20"
    paper: ClassVar[str] = "after PCG, arXiv 2511.13732"
    source: ClassVar[str] = "https://arxiv.org/abs/2511.13732"
    uses_draft_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_codebook(self.codebook, type(self).__name__)

    def accepts(self, drafts: Drafts) -> Tensor:
        if not drafts.do_sample:
            return AcceptAcoustic(self.distance, self.codebook, self.first).accepts(drafts)
        p, q = drafted_probabilities(drafts)
        stays = (p / q).clamp(max=1)  # (drafts,), for text
        groups, units = self._groups(drafts.tokens.device)
        own = (drafts.tokens >= units.start) & (drafts.tokens < units.stop)
        kept = (
            groups.masses(drafts.target_scores.softmax(-1)[:, units])
            / groups.masses(drafts.draft_scores.softmax(-1)[:, units])
        ).clamp(max=1)
        mean = groups.means(kept.nan_to_num(1))  # (drafts, units)
        index = (drafts.tokens - units.start).clamp(0, mean.shape[1] - 1)[:, None]
        return drafts.uniforms < torch.where(own, mean.gather(1, index)[:, 0], stays)

    def replacement_scores(self, drafts: Drafts, index: int) -> Tensor:
        target = drafts.target_scores[index]
        if not drafts.do_sample:
            return target
        p, q = target.softmax(-1), drafts.draft_scores[index].softmax(-1)
        groups, units = self._groups(target.device)
        residual = (p - q).clamp(min=0)  # (vocab,), for text
        mass, draft_mass = groups.masses(p[None, units]), groups.masses(q[None, units])
        # the share of each group's units that its residual leaves, without groups of mass 0
        left = ((mass - draft_mass).clamp(min=0) / mass).nan_to_num(0)
        residual[units] = p[units] * groups.means(left)[0]
        # p and q may differ by rounding only
        return residual.log() if residual.any() else target

    def bind(self, layout: TokenLayout, vocoder: Vocoder | None) -> Acceptance:
        if self.codebook is not None:
            return self
        bound = AcceptGroups(self.distance, units_for(self, vocoder, layout), layout.speech[0])
        object.__setattr__(bound, "_made", self._made)
        object.__setattr__(bound, "_is_bound", True)
        return bound

    def _groups(self, device: torch.device) -> tuple[SoundGroups, slice]:
        """The groups, and the ids of their units."""
        assert self.codebook is not None
        made = self._made.get(device)
        if made is None or made[0] is not self.codebook:
            made = (self.codebook, SoundGroups.within(self.distance, self.codebook.to(device)))
            self._made[device] = made
        return made[1], slice(self.first, self.first + len(self.codebook))

    @classmethod
    def from_spec(cls, rest: str) -> AcceptGroups:
        return cls(float(parse_rest(f":{NUMBER}", rest)[0]))

    @property
    def spec(self) -> str:
        refuse_own_codebook(self)
        return f"groups:{self.distance!r}"


@dataclass(frozen=True, eq=False)
class SoundGroups:
    """Overlapping groups of units; a unit gives an equal share of its mass to each of its groups.

    Attributes:
        members: sparse (groups, units), 1 where a group contains a unit.
        counts: (units,), number of groups that contain each unit.
    """

    members: Tensor
    counts: Tensor

    @classmethod
    def within(cls, distance: float, codebook: Tensor) -> SoundGroups:
        """One group for each unit: all units within a distance of it.

        Args:
            distance: largest distance of a member.
            codebook: (units, features).
        """
        sounds = codebook.double()  # squared distances lose half of the digits
        parts = []
        for start in range(0, len(sounds), _ROWS):
            near = torch.cdist(sounds[start : start + _ROWS], sounds) <= distance  # (rows, units)
            near.diagonal(start).fill_(True)
            parts.append(
                near.to_sparse().indices() + near.new_tensor([[start], [0]], dtype=torch.long)
            )
        indices = torch.cat(parts, 1)
        ones = torch.ones(indices.shape[1], device=codebook.device)
        shape = (len(sounds), len(sounds))
        members = torch.sparse_coo_tensor(indices, ones, shape, check_invariants=True)
        return cls(members.coalesce(), torch.bincount(indices[1], minlength=len(sounds)).float())

    def masses(self, probabilities: Tensor) -> Tensor:
        """Mass of each group: (tokens, units) -> (tokens, groups)."""
        masses: Tensor = torch.sparse.mm(self.members, (probabilities / self.counts).T).T
        return masses

    def means(self, values: Tensor) -> Tensor:
        """Mean over the groups of each unit: (tokens, groups) -> (tokens, units)."""
        sums: Tensor = torch.sparse.mm(self.members.T, values.T).T
        return sums / self.counts
