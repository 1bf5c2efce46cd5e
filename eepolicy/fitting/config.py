"""Options of fitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from eepolicy.errors import EepolicyError
from eepolicy.fields import Count, Positive, PositiveNumber, SeedCount, Tuple, check_fields
from eepolicy.fitting.losses import check_loss
from eepolicy.heads.drafter import DrafterHead
from eepolicy.heads.fitted import KINDS
from eepolicy.modality import Modality

#: values of `FitConfig.on`
POSITIONS = (*(m.name.lower() for m in Modality), "both")

#: values of `FitConfig.precision`
PRECISIONS = ("float32", "bfloat16")

#: maximum number of replies in a step of `fit_rounds`
MAX_BATCH = 96
#: minimum number of steps of a pass, so that a fit on few replies takes enough steps
MIN_STEPS = 60


@dataclass(frozen=True)
class FitConfig:
    """Options of fitting exit heads.

    Attributes:
        kind: kind of head, `tuned`, `linear`, `low-rank`, `branch`, `drafter` or the name of a
            plug-in.
        depths: depths that get a head, rising; None for all depths below full.  A drafter is at
            depth 0.
        rank: rank of `low-rank` heads.
        num_layers: number of layers of a `branch` or a `drafter`.
        unroll: number of drafts in a row that a `drafter` is fitted and evaluated on.
        loss: `soft` (the loss of SPAR-K), `reverse_kl` or `top:K`, see `eepolicy.fitting.losses`.
        on: modality of the positions to fit on, `text`, `speech` or `both`.
        epochs: maximum number of passes over the replies.  In `fit` the learning rate falls to zero
            over them as a cosine; in `fit_rounds` it rises, and then falls along a line.
        patience: number of epochs without a lower KL at any depth after which `fit` stops.
        batch_tokens: approximate number of positions in a step of `fit`.
        chunk: number of positions whose logits are in memory together.
        learning_rate: largest learning rate of the fit on full-depth replies.  None means 1e-3 for
            `fit` and 1.5e-3 for `fit_rounds`.
        seed: seed of the order of the replies and of random initial weights.  Fits with the same
            seed, data and options give the same file.
        rounds: number of rounds of `fit_rounds` on the model's own replies.
        round_epochs: number of passes over the replies of a round.
        round_learning_rate: largest learning rate of a round.
        part: share of the questions that are answered anew in a round.
        mix: share of full-depth replies among the replies of a round.
        policy: spec string of the policy of own replies, with `{depth}` for the depth that is
            fitted.  None means an exit at this depth at every position of the modality `on`.
        batch_replies: number of replies in a step of `fit_rounds`; None means 96, and fewer where a
            pass over the questions would have fewer than 60 steps.
        padded_positions: number of positions, padding included, that pass a branch together in a
            step; the activations of so many are in memory.
        precision: type of the products of `fit_rounds`, `float32` or `bfloat16`.  The weights and
            the labels are in float32.

    Raises:
        EepolicyError: an option has a wrong type or is out of range.
    """

    kind: str = "tuned"
    depths: Annotated[tuple[Count, ...], Tuple] | None = None
    rank: Positive = 32
    num_layers: Positive = 2
    unroll: Positive = 3
    loss: str = "soft"
    on: str = "both"
    epochs: Positive = 5
    patience: Positive = 1
    batch_tokens: Positive = 512
    chunk: Positive = 256
    learning_rate: PositiveNumber | None = None
    seed: SeedCount = 0
    rounds: Count = 0
    round_epochs: Positive = 6
    round_learning_rate: PositiveNumber = 8e-4
    part: Annotated[float, Field(gt=0, le=1)] = 0.5
    mix: Annotated[float, Field(ge=0, lt=1)] = 0.5
    policy: str | None = None
    batch_replies: Positive | None = None
    padded_positions: Positive = 16384
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.precision not in PRECISIONS:
            raise EepolicyError(f"precision is {' or '.join(PRECISIONS)}; got {self.precision!r}")
        KINDS.get(self.kind)
        check_loss(self.loss)
        if self.on not in POSITIONS:
            raise EepolicyError(f"heads are fitted on text, speech or both; got {self.on!r}")
        self._check_depths()
        self._check_drafter()

    @property
    def is_drafter(self) -> bool:
        """Whether the head is a drafter, at depth 0."""
        return issubclass(KINDS.get(self.kind), DrafterHead)

    def replies_in_step(self, questions: int) -> int:
        """Number of replies in a step of `fit_rounds`.

        Args:
            questions: number of questions to fit on.

        Examples:
            >>> [FitConfig().replies_in_step(questions) for questions in (6000, 600, 6)]
            [96, 10, 1]
        """
        if self.batch_replies is not None:
            return self.batch_replies
        return min(MAX_BATCH, max(1, questions // MIN_STEPS))

    def policy_at(self, depth: int) -> str:
        """Spec string of the policy that gives the own replies at a depth.

        Examples:
            >>> FitConfig(on="speech").policy_at(6)
            'speech=static@6'
        """
        spec = f"{self.on}=static@{{depth}}" if self.policy is None else self.policy
        return spec.replace("{depth}", str(depth))

    def _check_depths(self) -> None:
        if self.depths is None:
            return
        if self.is_drafter:
            if self.depths != (0,):
                raise EepolicyError(f"a drafter is a head at depth 0; got depths {self.depths!r}")
            return
        if not self.depths or self.depths[0] < 1 or sorted({*self.depths}) != [*self.depths]:
            raise EepolicyError(
                "depths is a tuple of rising depths from 1 on, such as (8, 12, 16), or None for "
                f"all depths below full; got {self.depths!r}"
            )

    def _check_drafter(self) -> None:
        if self.is_drafter and (self.rounds or self.policy is not None):
            raise EepolicyError(
                "a verified drafter gives the replies of the full model, so it has no rounds on "
                "own replies: leave rounds and policy out"
            )
