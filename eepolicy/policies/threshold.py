"""Adaptive exits: go on until a statistic of the exit head's distribution passes a threshold."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.policies.adaptive import Adaptive
from eepolicy.policies.base import Readout, Step, prefixed


@dataclass(frozen=True)
class Threshold(Adaptive):
    """Looks at some depths, exits at the first one that is sure enough.

    Attributes:
        threshold: of the statistic.
        exit_depths: the depths, or one depth: from it on, every depth below full.
        on: `"speech"`, `"text"` or `"both"`.
    """

    threshold: float
    exit_depths: int | tuple[int, ...]
    on: str = "speech"
    sign: ClassVar[str]

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        return step.is_on(self.on) & self.sure(readout)

    @abstractmethod
    def sure(self, readout: Readout) -> Tensor:
        """Which rows are sure enough: (rows,) of bool."""

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"{self.name}{self.sign}{float(self.threshold)!r}@{self.at}")


@dataclass(frozen=True)
class Entropy(Threshold):
    """Exits where the entropy (nats) falls below the threshold: Conf(l) of SPAR-K, table 2.

    Examples:
        >>> Entropy(0.5, 26).spec
        'entropy<0.5@26'
    """

    name: ClassVar[str] = "entropy"
    sign: ClassVar[str] = "<"

    def sure(self, readout: Readout) -> Tensor:
        return readout.entropy < self.threshold


@dataclass(frozen=True)
class Confidence(Threshold):
    """Exits where the likeliest token's probability passes the threshold.

    The measure of Schwartz et al. 2020 (arXiv 2004.07453), there calibrated and for classifiers.

    Examples:
        >>> Confidence(0.9, (14, 16, 18)).spec
        'confidence>0.9@[14,16,18]'
    """

    name: ClassVar[str] = "confidence"
    sign: ClassVar[str] = ">"

    def sure(self, readout: Readout) -> Tensor:
        return readout.confidence > self.threshold


@dataclass(frozen=True)
class Margin(Threshold):
    """Exits where the two likeliest probabilities lie further apart than the threshold.

    The softmax response of CALM (arXiv 2207.07061).

    Examples:
        >>> Margin(0.7, 14).spec
        'margin>0.7@14'
    """

    name: ClassVar[str] = "margin"
    sign: ClassVar[str] = ">"

    def sure(self, readout: Readout) -> Tensor:
        return readout.margin > self.threshold


@dataclass(frozen=True)
class Saturation(Threshold):
    """Exits where the hidden state has all but stopped turning since the look before.

    The hidden-state saturation of CALM (arXiv 2207.07061), there between neighbouring layers: look
    at every depth for that.  It needs no head to decide, but nothing can exit at the first look.

    Examples:
        >>> Saturation(0.98, 14).spec
        'saturation>0.98@14'
    """

    name: ClassVar[str] = "saturation"
    sign: ClassVar[str] = ">"

    def sure(self, readout: Readout) -> Tensor:
        if readout.previous is None:
            return torch.zeros(len(readout.hidden), dtype=torch.bool, device=readout.hidden.device)
        return readout.cosine(readout.previous) > self.threshold
