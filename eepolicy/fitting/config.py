"""Options of fitting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eepolicy.errors import EepolicyError
from eepolicy.fitting.losses import check_loss
from eepolicy.heads.drafter import DrafterHead
from eepolicy.heads.fitted import KINDS
from eepolicy.modality import Modality

#: values of `FitConfig.on`
POSITIONS = (*(m.name.lower() for m in Modality), "both")

#: values of `FitConfig.precision`
PRECISIONS = ("float32", "bfloat16")

#: options that are integers of 1 or more
_POSITIVE = (
    "rank",
    "num_layers",
    "unroll",
    "epochs",
    "patience",
    "batch_tokens",
    "chunk",
    "round_epochs",
    "batch_replies",
    "padded_positions",
)
_NO_RATE = ("learning_rate", None)


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
        epochs: maximum number of passes over the replies; the learning rate falls to zero over
            them as a cosine.
        patience: number of epochs without a lower KL at any depth after which fitting stops.
        batch_tokens: approximate number of positions in a step.
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
        batch_replies: number of replies in a step of `fit_rounds`.
        padded_positions: number of positions, padding included, that pass a branch together in a
            step; the activations of so many are in memory.
        precision: type of the products of `fit_rounds`, `float32` or `bfloat16`.  The weights and
            the labels are in float32.

    Raises:
        EepolicyError: an option has a wrong type or is out of range.
    """

    kind: str = "tuned"
    depths: tuple[int, ...] | None = None
    rank: int = 32
    num_layers: int = 2
    unroll: int = 3
    loss: str = "soft"
    on: str = "both"
    epochs: int = 5
    patience: int = 1
    batch_tokens: int = 512
    chunk: int = 256
    learning_rate: float | None = None
    seed: int = 0
    rounds: int = 0
    round_epochs: int = 6
    round_learning_rate: float = 8e-4
    part: float = 0.5
    mix: float = 0.5
    policy: str | None = None
    batch_replies: int = 96
    padded_positions: int = 16384
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not _is_int(getattr(self, name), 1):
                raise EepolicyError(
                    f"{name} is an integer of 1 or more; got {getattr(self, name)!r}"
                )
        for name in ("seed", "rounds"):
            if not _is_int(getattr(self, name), 0):
                raise EepolicyError(
                    f"{name} is an integer of 0 or more; got {getattr(self, name)!r}"
                )
        for name in ("learning_rate", "round_learning_rate"):
            rate = getattr(self, name)
            if not (_is_number(rate) and 0 < rate < math.inf) and (name, rate) != _NO_RATE:
                raise EepolicyError(f"{name} is a number above 0; got {rate!r}")
        if not (_is_number(self.part) and 0 < self.part <= 1):
            raise EepolicyError(f"part is a share above 0 and up to 1; got {self.part!r}")
        if not (_is_number(self.mix) and 0 <= self.mix < 1):
            raise EepolicyError(f"mix is a share from 0 to below 1; got {self.mix!r}")
        if self.precision not in PRECISIONS:
            raise EepolicyError(f"precision is {' or '.join(PRECISIONS)}; got {self.precision!r}")
        if self.policy is not None and not isinstance(self.policy, str):
            raise EepolicyError(f"policy is a spec string such as static@6; got {self.policy!r}")
        if not isinstance(self.kind, str):
            raise EepolicyError(f"kind is the name of a kind of head; got {self.kind!r}")
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
        is_tuple = isinstance(self.depths, tuple) and all(_is_int(d, 1) for d in self.depths)
        if not is_tuple or not self.depths or sorted({*self.depths}) != [*self.depths]:
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


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_int(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum
