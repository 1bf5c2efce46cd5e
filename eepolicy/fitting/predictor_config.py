"""Options and result of fitting an exit predictor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eepolicy.errors import EepolicyError
from eepolicy.fields import (
    Count,
    NonNegative,
    Positive,
    PositiveNumber,
    RisingDepths,
    SeedCount,
    check_fields,
)
from eepolicy.fitting.config import POSITIONS
from eepolicy.heads.predictor import ExitPredictor


@dataclass(frozen=True)
class PredictorConfig:
    """Options of fitting an exit predictor.

    Attributes:
        depths: depths that get a network, rising.
        hidden: width of the layer in between; 0 for one linear map.
        on: modality of the positions to fit on, `text`, `speech` or `both`.
        epochs: number of passes over the positions; the learning rate falls to zero over them as a
            cosine.  The epoch with the lowest held-out loss is kept, for each depth.
        batch: number of positions in a step.
        learning_rate: learning rate of AdamW in the first step.
        weight_decay: weight decay of AdamW.
        seed: seed of the initial weights and of the order of the positions.

    Raises:
        EepolicyError: an option is out of range.
    """

    depths: RisingDepths
    hidden: Count = 64
    on: str = "speech"
    epochs: Positive = 10
    batch: Positive = 256
    learning_rate: PositiveNumber = 1e-3
    weight_decay: NonNegative = 1e-2
    seed: SeedCount = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.on not in POSITIONS:
            raise EepolicyError(f"a predictor is fitted on text, speech or both; got {self.on!r}")


@dataclass(frozen=True)
class PredictorResult:
    """A fitted exit predictor.

    Attributes:
        predictor: the best weights of each depth.
        notes: options, number of replies, and by depth on the held-out replies: the share of
            positions where the head agrees (`agreement`), the cross-entropy in nats of the fitted
            predictor (`loss`) and of the constant share (`loss_of_share`), and `auc`, the
            probability that it ranks an agreeing position above another one.
    """

    predictor: ExitPredictor
    notes: dict[str, Any]
