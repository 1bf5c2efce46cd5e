"""Options of fitting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eepolicy.errors import EepolicyError
from eepolicy.fitting.losses import check_loss
from eepolicy.heads.fitted import KINDS
from eepolicy.modality import Modality

#: values of `FitConfig.on`
POSITIONS = (*(m.name.lower() for m in Modality), "both")


@dataclass(frozen=True)
class FitConfig:
    """Options of fitting exit heads.

    Attributes:
        kind: kind of head, `tuned`, `linear`, `low-rank` or the name of a plug-in.
        depths: depths that get a head, rising; None for all depths below full.
        rank: rank of `low-rank` heads.
        loss: `soft` (the loss of SPAR-K), `reverse_kl` or `top:K`, see `eepolicy.fitting.losses`.
        on: modality of the positions to fit on, `text`, `speech` or `both`.
        epochs: maximum number of passes over the replies; the learning rate falls to zero over
            them as a cosine.
        patience: number of epochs without a lower KL at any depth after which fitting stops.
        batch_tokens: approximate number of positions in a step.
        chunk: number of positions whose logits are in memory together.
        learning_rate: learning rate of Adam in the first step.
        seed: seed of the order of the replies and of random initial weights.  Fits with the same
            seed, data and options give the same file.

    Raises:
        EepolicyError: an option has a wrong type or is out of range.
    """

    kind: str = "tuned"
    depths: tuple[int, ...] | None = None
    rank: int = 32
    loss: str = "soft"
    on: str = "both"
    epochs: int = 5
    patience: int = 1
    batch_tokens: int = 512
    chunk: int = 256
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "patience", "batch_tokens", "chunk"):
            if not _is_int(getattr(self, name), 1):
                raise EepolicyError(
                    f"{name} is an integer of 1 or more; got {getattr(self, name)!r}"
                )
        if not _is_int(self.seed, 0):
            raise EepolicyError(f"seed is an integer of 0 or more; got {self.seed!r}")
        rate = self.learning_rate
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise EepolicyError(f"learning_rate is a number above 0; got {rate!r}")
        if not isinstance(self.kind, str):
            raise EepolicyError(f"kind is the name of a kind of head; got {self.kind!r}")
        KINDS.get(self.kind)
        check_loss(self.loss)
        if self.on not in POSITIONS:
            raise EepolicyError(f"heads are fitted on text, speech or both; got {self.on!r}")
        self._check_depths()

    def _check_depths(self) -> None:
        if self.depths is None:
            return
        is_tuple = isinstance(self.depths, tuple) and all(_is_int(d, 1) for d in self.depths)
        if not is_tuple or not self.depths or sorted({*self.depths}) != [*self.depths]:
            raise EepolicyError(
                "depths is a tuple of rising depths from 1 on, such as (8, 12, 16), or None for "
                f"all depths below full; got {self.depths!r}"
            )


def _is_int(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum
