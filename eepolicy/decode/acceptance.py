"""What a refresh does with the tokens that were read out early.

The catch-up has just run the full model over the positions that waited: for each of them, its
distribution costs one evaluation of the head.  A rule compares it with the token that was emitted
there.  Accepting everything is SPAR-K; accepting only what the full model would have emitted is
lossless self-speculation (LayerSkip, arXiv 2404.16710); the rules between are a dial.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.speech.vocoder import codebook_of

if TYPE_CHECKING:
    from eepolicy.modality import TokenLayout
    from eepolicy.speech.vocoder import Vocoder

GRAMMAR = "all, exact, sampling, top:COUNT, ratio:SHARE, acoustic:DISTANCE"


@dataclass(frozen=True)
class Drafts:
    """Tokens of one row that were read out early, and what the full model says of them.

    Attributes:
        tokens: (drafts,).
        full: (drafts, vocabulary), the full model's scores, as the sampler draws from them.
        early: (drafts, vocabulary), the scores that they were drawn from, for rules that use them.
        do_sample: whether tokens are drawn, or the likeliest one is taken.
        uniforms: (drafts,) in 0..1.
    """

    tokens: Tensor
    full: Tensor
    early: Tensor
    do_sample: bool
    uniforms: Tensor


class Acceptance(ABC):
    """Which drafts are kept.  Drafts behind the first that is not are dropped."""

    #: whether there is anything to judge
    verifies: ClassVar[bool] = True
    #: whether the rule means something only where the likeliest token is taken
    greedy_only: ClassVar[bool] = False
    #: whether it asks what the drafts were drawn from
    uses_early: ClassVar[bool] = False

    @abstractmethod
    def accepts(self, drafts: Drafts) -> Tensor:
        """Which drafts may stay: (drafts,) of bool."""

    def scores(self, drafts: Drafts, place: int) -> Tensor:
        """What the token in place of a rejected draft is drawn from: (vocabulary,)."""
        return drafts.full[place]

    def check(self, layout: TokenLayout, vocoder: Vocoder | None) -> Acceptance:
        """The rule for a model; refuses what it does not have.

        Raises:
            EepolicyError: naming what is missing.
        """
        return self


@dataclass(frozen=True)
class AcceptAll(Acceptance):
    """Everything stays: SPAR-K.  Nothing is judged, so nothing is paid for it."""

    verifies = False

    def accepts(self, drafts: Drafts) -> Tensor:
        return torch.ones_like(drafts.tokens, dtype=torch.bool)


@dataclass(frozen=True)
class AcceptExact(Acceptance):
    """What the full model holds likeliest: its greedy tokens, whatever the policy."""

    greedy_only = True

    def accepts(self, drafts: Drafts) -> Tensor:
        return drafts.tokens == drafts.full.argmax(-1)


@dataclass(frozen=True)
class AcceptSampling(Acceptance):
    """Speculative sampling (arXiv 2211.17192): the full model's distribution, whatever the policy.

    A draft x stays with probability min(1, p(x) / q(x)), p the full model's distribution and q that
    it was drawn from; in place of a rejected one, a token is drawn from max(p - q, 0), normed.
    """

    uses_early = True

    def accepts(self, drafts: Drafts) -> Tensor:
        if not drafts.do_sample:
            return AcceptExact().accepts(drafts)
        at = drafts.tokens[:, None]
        p, q = (scores.softmax(-1).gather(1, at)[:, 0] for scores in (drafts.full, drafts.early))
        return drafts.uniforms * q < p

    def scores(self, drafts: Drafts, place: int) -> Tensor:
        if not drafts.do_sample:
            return drafts.full[place]
        p, q = drafts.full[place].softmax(-1), drafts.early[place].softmax(-1)
        rest = (p - q).clamp(min=0)
        # p and q may differ by rounding alone
        return rest.log() if rest.any() else drafts.full[place]


@dataclass(frozen=True)
class AcceptTop(Acceptance):
    """What is among the full model's likeliest tokens.

    Attributes:
        count: of them.
    """

    count: int

    def accepts(self, drafts: Drafts) -> Tensor:
        count = min(self.count, drafts.full.shape[1])
        return (drafts.full.topk(count, -1).indices == drafts.tokens[:, None]).any(-1)

    def check(self, layout: TokenLayout, vocoder: Vocoder | None) -> Acceptance:
        if self.count < 1:
            raise EepolicyError(f"{self!r} must keep 1 or more of the likeliest tokens")
        return self


@dataclass(frozen=True)
class AcceptRatio(Acceptance):
    """What the full model holds at least so likely, compared with its likeliest token.

    Attributes:
        share: of the likeliest token's probability, 0 (everything) to 1 (the likeliest alone).
    """

    share: float

    def accepts(self, drafts: Drafts) -> Tensor:
        p = drafts.full.softmax(-1)
        return p.gather(1, drafts.tokens[:, None])[:, 0] >= self.share * p.amax(-1)

    def check(self, layout: TokenLayout, vocoder: Vocoder | None) -> Acceptance:
        if not 0 <= self.share <= 1:
            raise EepolicyError(f"{self!r} needs a share from 0 to 1")
        return self


@dataclass(frozen=True)
class AcceptAcoustic(Acceptance):
    """A speech unit whose sound is near that of the full model's likeliest token.

    After the acoustic similarity of arXiv 2511.13732; here the Euclidean distance between the
    units' sounds in the vocoder's codebook.  Text is accepted as `exact` does.

    Attributes:
        distance: up to which a unit is near.
        codebook: (units, features); the model's own where none is given.
        first: id of the first unit.
    """

    distance: float
    codebook: Tensor | None = field(default=None, repr=False, compare=False)
    first: int = 0

    def accepts(self, drafts: Drafts) -> Tensor:
        assert self.codebook is not None
        wanted = drafts.full.argmax(-1)
        near = drafts.tokens == wanted
        units = torch.stack([drafts.tokens, wanted]) - self.first
        sounds = ((units >= 0) & (units < len(self.codebook))).all(0)
        mine, other = self.codebook.to(units.device)[units[:, sounds]]
        near[sounds] |= (mine - other).norm(dim=-1) <= self.distance
        return near

    def check(self, layout: TokenLayout, vocoder: Vocoder | None) -> Acceptance:
        if self.distance < 0:
            raise EepolicyError(f"acoustic acceptance needs a distance of 0 or more; got {self}")
        if self.codebook is not None:
            return self
        sounds = codebook_of(vocoder)
        if sounds is None:
            raise EepolicyError(
                "acoustic acceptance needs the sounds of the units: a model whose vocoder has a "
                "codebook, or AcceptAcoustic(distance, codebook=...)"
            )
        return AcceptAcoustic(self.distance, sounds, layout.speech[0])


_NUMBER = r"(\d*\.?\d+)"
_FORMS: tuple[tuple[str, Callable[..., Acceptance]], ...] = (
    ("all", AcceptAll),
    ("exact", AcceptExact),
    ("sampling", AcceptSampling),
    (r"top:(\d+)", lambda count: AcceptTop(int(count))),
    (f"ratio:{_NUMBER}", lambda share: AcceptRatio(float(share))),
    (f"acoustic:{_NUMBER}", lambda distance: AcceptAcoustic(float(distance))),
)


def parse_acceptance(spec: str) -> Acceptance:
    """The rule that a string names.

    Raises:
        EepolicyError: the string is none; the message has the grammar.

    Examples:
        >>> parse_acceptance("ratio:0.3")
        AcceptRatio(share=0.3)
    """
    for form, build in _FORMS:
        if match := re.fullmatch(form, spec.strip()):
            return build(*match.groups())
    raise EepolicyError(f"{spec!r} is no acceptance; one is: {GRAMMAR}")
