"""Exit where a fitted predictor expects the head to agree with the full model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.policies.base import POLICIES, Readout
from eepolicy.policies.threshold import Threshold


@POLICIES.register
@dataclass(frozen=True)
class Predictor(Threshold):
    """Exits where the exit predictor is surer than a threshold.

    The predictor is a small fitted network on the hidden state.  It gives the probability that the
    head at this depth has the full model's most likely token.  So a depth at which nothing exits
    costs no head evaluation.  This is the classifier of CALM (arXiv 2207.07061) and the predictor
    of SpecEE (arXiv 2504.08850), without SpecEE's draft tokens as inputs.

    The model needs an exit predictor: `model.predictor`, fitted by `eepolicy fit-predictor`.

    Examples:
        >>> Predictor(0.9, (4, 6, 8)).spec
        'predictor>0.9@[4,6,8]'
    """

    name: ClassVar[str] = "predictor"
    usage: ClassVar[str] = "predictor>PROBABILITY@DEPTHS"
    example: ClassVar[str] = "predictor>0.9@[4,6,8]"
    summary: ClassVar[str] = (
        "a fitted probability above 0.9 that the head agrees with the full model; no head "
        "evaluation to decide"
    )
    paper: ClassVar[str] = "classifier of CALM, arXiv 2207.07061"
    source: ClassVar[str] = "https://arxiv.org/abs/2207.07061"
    colour: ClassVar[str] = "#0072B2"
    marker: ClassVar[str] = "h"
    comparison: ClassVar[str] = ">"

    def passes(self, readout: Readout) -> Tensor:
        return readout.exit_probability > self.threshold

    def predicted_depths(self, full_depth: int) -> tuple[int, ...]:
        return self.possible_depths(full_depth)
